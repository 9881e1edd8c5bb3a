//! What waits: each request and session has its own entry, and there is no other. An acceptance of the store puts that in
//! order, since what waits without an entry would wait for ever, and a stray entry would be cut once more.

use super::super::engine::hex;
use super::super::{requests, sessions};
use super::entries::get;
use super::{Engine, Report, Request, RequestStatus, Scan, Session, StoreError, Tree, Violation, keys};

/// The trees of such entries.
pub(super) const TREES: [Tree; 3] = [Tree::Pending, Tree::Backoff, Tree::Settling];

impl Scan {
    /// Blames what follows from other records, and notes what it is to be. Where it is among what was accepted before, it
    /// is mended all the same.
    pub(super) fn mend(
        &mut self,
        (invariant, place, what): (u8, String, String),
        (tree, key, value): (Tree, Vec<u8>, Option<Vec<u8>>),
    ) {
        // What is more broken than is told is not accepted.
        if self.report.violations.len() < Report::VIOLATIONS_MAX {
            self.report.mends.entry(tree).or_default().insert(key, value);
        }
        self.note_violation(Violation { invariant, place, what, is_mended: true });
    }

    /// Invariant 1: a request that waits is listed where it is looked for.
    pub(super) fn waits(&mut self, engine: &Engine, request: &Request) -> Result<(), StoreError> {
        if request.status != RequestStatus::PendingBatching {
            return Ok(());
        }
        let (tree, key) = requests::place(request);
        self.listed(engine, (tree, key, requests::place_value(request)), &format!("request {}", request.id))
    }

    /// The same of a session that settles.
    pub(super) fn settles(&mut self, engine: &Engine, session: &Session) -> Result<(), StoreError> {
        let Some(at) = session.settles_at else { return Ok(()) };
        let key = sessions::settling_key(at, session.id);
        self.listed(engine, (Tree::Settling, key, Vec::new()), &format!("session {}", session.id))
    }

    fn listed(
        &mut self,
        engine: &Engine,
        (tree, key, value): (Tree, Vec<u8>, Vec<u8>),
        who: &str,
    ) -> Result<(), StoreError> {
        if engine.get(tree, &key)?.is_none() {
            self.tally.unlisted += 1;
            let place = format!("{}/{}", tree.name(), hex(&key));
            let what = format!("{who} waits and is not listed in {}", tree.name());
            self.mend((1, place, what), (tree, key, Some(value)));
        }
        Ok(())
    }

    /// Finds the entries that nobody has, at the end of the tree whose records have them. There are some only where there
    /// are too many, or where one is missing.
    pub(super) fn strays(&mut self, engine: &Engine, of: Tree) -> Result<(), StoreError> {
        let owner = |tree: &Tree| if *tree == Tree::Settling { Tree::Sessions } else { Tree::Requests };
        for tree in TREES.into_iter().filter(|tree| owner(tree) == of) {
            let mut from = Vec::new();
            loop {
                let found = engine.look(tree, &from, super::PAGE)?;
                for entry in &found {
                    if !is_own(engine, tree, &entry.key)? {
                        let place = format!("{}/{}", tree.name(), hex(&entry.key));
                        let what = "what is listed does not wait there".to_owned();
                        self.mend((1, place, what), (tree, entry.key.clone(), None));
                    }
                }
                match found.last() {
                    Some(last) if found.len() == super::PAGE => from = [last.key.as_slice(), &[0]].concat(),
                    Some(_) | None => break,
                }
            }
        }
        Ok(())
    }
}

/// Whether an entry is that of its request or session. One whose record cannot be read cannot be sent either.
fn is_own(engine: &Engine, tree: Tree, key: &[u8]) -> Result<bool, StoreError> {
    let own = if tree == Tree::Settling {
        let id = keys::session_at_end(key).map(|id| get::<Session>(engine, Tree::Sessions, id.as_bytes()));
        id.transpose().map(|session| {
            let session = session.flatten();
            session
                .is_some_and(|one| one.settles_at.is_some_and(|at| sessions::settling_key(at, one.id) == key))
        })
    } else {
        let id = keys::request_at_end(key).map(|id| get::<Request>(engine, Tree::Requests, id.as_bytes()));
        id.transpose()
            .map(|request| request.flatten().is_some_and(|request| requests::is_at(&request, tree, key)))
    };
    match own {
        Err(StoreError::Damaged { .. } | StoreError::Codec(_)) => Ok(false),
        own => own,
    }
}

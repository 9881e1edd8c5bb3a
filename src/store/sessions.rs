//! Sessions: taken in by (company, external id), versioned by content, analysed once they have settled.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::client_keys::{Before, CallLine};
use super::keys::{self, Key, Tree};
use super::requests::{self, NewRequest};
use super::tx::Tx;
use super::{Store, StoreError, StoreReader, client_keys, codec, erasing, sources};
use crate::domain::id::{CompanyId, RequestId, SessionId, Timestamp};
use crate::domain::request::{Request, RequestStatus, Source};
use crate::domain::session::{Message, Session, SessionFacts, SessionState};
use crate::domain::source::TranscriptAt;

/// A session as it comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionIn {
    /// The tenant.
    pub company: CompanyId,
    /// The export's id.
    pub external_id: String,
    /// Its id, used only if it is new.
    pub id: SessionId,
    /// What the export says.
    pub facts: SessionFacts,
    /// The messages; none where the transcript could not be had.
    pub messages: Option<Vec<Message>>,
    /// SHA-256 of the messages.
    pub content_hash: [u8; 32],
    /// When it may be analysed if it does not change before.
    pub settles_at: Timestamp,
    /// Where its transcript is fetched from, if it is.
    pub fetch: Option<TranscriptAt>,
    /// The line that brought it, where its call can be known again.
    pub line: Option<CallLine>,
}

/// What became of a session that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionTaken {
    /// It was not known.
    New,
    /// It was known just so.
    Unchanged,
    /// Its facts changed, its messages did not.
    Updated,
    /// Its messages changed: it will be analysed anew.
    Changed,
    /// It was erased: nothing of it is kept.
    Erased,
    /// Its line brought another session before.
    Conflict,
}

/// What is stored of one version of a session, and what its analysis is asked of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The facts when the version came in.
    pub facts: SessionFacts,
    /// The messages.
    pub messages: Vec<Message>,
}

impl Store {
    /// Takes in at most 250 sessions.
    pub async fn accept_sessions(
        &self,
        sessions: Vec<SessionIn>,
        now: Timestamp,
    ) -> Result<Vec<SessionTaken>, StoreError> {
        self.committer
            .commit(sessions.len(), move |tx| {
                sessions.into_iter().map(|session| accept(tx, session, now)).collect()
            })
            .await
    }

    /// Makes the request for the analysis of each session's version, if it is still the one that settles. An
    /// older request that still waits is replaced by it. Says how many were made.
    pub async fn request_analyses(
        &self,
        settled: Vec<(SessionId, u32, NewRequest)>,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        self.committer
            .commit(settled.len(), move |tx| {
                let mut made = 0;
                for (session, version, request) in settled {
                    made += usize::from(request_analysis(tx, session, version, request, now)?);
                }
                Ok(made)
            })
            .await
    }
}

fn accept(tx: &mut Tx<'_>, new: SessionIn, now: Timestamp) -> Result<SessionTaken, StoreError> {
    let key = Key::new().company(&new.company).text(&new.external_id).done();
    if erasing::is_kept_out(tx, &new.company, &new.external_id)? {
        return Ok(SessionTaken::Erased);
    }
    if let Some(line) = &new.line {
        // What came since is newer than a call that is only repeated.
        match client_keys::use_for_session(tx, &new.company, line, whole_hash(tx, &new)?, now)? {
            Before::Never => {}
            Before::Same => return Ok(SessionTaken::Unchanged),
            Before::Other => return Ok(SessionTaken::Conflict),
        }
    }
    let known: Option<SessionId> = tx.read(Tree::SessionKeys, &key)?;
    let Some(id) = known else {
        let state =
            if new.messages.is_some() { SessionState::Empty } else { SessionState::TranscriptMissing };
        let mut session = Session {
            id: new.id,
            company: new.company,
            external_id: new.external_id,
            version: 0,
            content_hash: [0; 32],
            facts: new.facts,
            message_count: 0,
            state,
            changed_at: now,
            settles_at: None,
            request: None,
        };
        tx.write(Tree::SessionKeys, key, &new.id)?;
        tx.put(Tree::SessionsOf, keys::session_of(&session.company, session.id), Vec::new());
        if let Some(messages) = new.messages {
            add_version(tx, &mut session, messages, new.content_hash, new.settles_at, now)?;
        }
        save(tx, &session)?;
        if let Some(at) = new.fetch {
            sources::name(tx, &session, at, true, now)?;
        }
        return Ok(SessionTaken::New);
    };
    let mut session = load(tx, id)?;
    if session.state == SessionState::Expired {
        // Only other messages are something new: its facts are not kept, and its transcript is not fetched again. None
        // at all are no others, and to take note of them would forget which ones were paid for.
        let same = session.version > 0 && session.content_hash == new.content_hash;
        if new.messages.as_ref().is_none_or(Vec::is_empty) || same {
            return Ok(SessionTaken::Unchanged);
        }
        tx.put(Tree::SessionsOf, keys::session_of(&session.company, id), Vec::new());
    }
    let updated = session.facts != new.facts;
    session.facts = new.facts;
    match new.fetch {
        Some(at) => sources::name(tx, &session, at, updated, now)?,
        None if new.messages.is_some() => sources::forget(tx, id)?,
        None => {}
    }
    // A transcript that cannot be had today does not undo the one that was had before.
    // Nor does an export that names no transcript at all undo what came another way.
    let changed = new.messages.filter(|messages| {
        let none = messages.is_empty() && session.message_count > 0;
        session.version == 0 || (session.content_hash != new.content_hash && !none)
    });
    let taken = match (changed, updated) {
        (Some(messages), _) => {
            add_version(tx, &mut session, messages, new.content_hash, new.settles_at, now)?;
            SessionTaken::Changed
        }
        (None, true) => SessionTaken::Updated,
        (None, false) => return Ok(SessionTaken::Unchanged),
    };
    save(tx, &session)?;
    Ok(taken)
}

/// SHA-256 of all that a line says of a session. The store's own id goes in: what was erased cannot be guessed from it.
fn whole_hash(tx: &Tx<'_>, session: &SessionIn) -> Result<[u8; 32], StoreError> {
    let instance: Option<uuid::Uuid> = tx.read(Tree::Meta, super::INSTANCE)?;
    let said =
        (instance, &session.external_id, &session.facts, session.messages.is_some(), session.content_hash);
    Ok(Sha256::digest(codec::encode(&said)?).into())
}

/// Gives a session the messages that were fetched for it, as [`Store::accept_sessions`] does.
pub(super) fn add_messages(
    tx: &mut Tx<'_>,
    id: SessionId,
    messages: Vec<Message>,
    content_hash: [u8; 32],
    settles_at: Timestamp,
    now: Timestamp,
) -> Result<SessionTaken, StoreError> {
    let mut session = load(tx, id)?;
    if session.version > 0 && session.content_hash == content_hash {
        return Ok(SessionTaken::Unchanged);
    }
    add_version(tx, &mut session, messages, content_hash, settles_at, now)?;
    save(tx, &session)?;
    Ok(SessionTaken::Changed)
}

fn add_version(
    tx: &mut Tx<'_>,
    session: &mut Session,
    messages: Vec<Message>,
    content_hash: [u8; 32],
    settles_at: Timestamp,
    now: Timestamp,
) -> Result<(), StoreError> {
    unsettle(tx, session);
    session.version += 1;
    session.content_hash = content_hash;
    session.message_count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
    session.changed_at = now;
    if messages.is_empty() {
        session.state = SessionState::Empty;
        return Ok(());
    }
    let content = Content { facts: session.facts.clone(), messages };
    let bytes = codec::encode(&content)?;
    tx.put_text(Tree::Contents, &keys::content(session.id, session.version), &bytes)?;
    session.state = SessionState::Settling;
    session.settles_at = Some(settles_at);
    tx.put(Tree::Settling, settling_key(settles_at, session.id), Vec::new());
    Ok(())
}

/// A session whose request is gone has none.
pub(super) fn forget_request(tx: &mut Tx<'_>, id: SessionId, request: RequestId) -> Result<(), StoreError> {
    match tx.read::<Session>(Tree::Sessions, id.as_bytes())? {
        Some(session) if session.request == Some(request) => save(tx, &Session { request: None, ..session }),
        Some(_) | None => Ok(()),
    }
}

/// Has nothing be analysed of a session any more.
pub(super) fn still(tx: &mut Tx<'_>, mut session: Session) -> Result<(), StoreError> {
    if session.settles_at.is_some() {
        unsettle(tx, &mut session);
        session.state = SessionState::Empty;
        save(tx, &session)?;
    }
    Ok(())
}

/// Removes a session that has no request any more, with all its versions.
pub(super) fn remove(tx: &mut Tx<'_>, mut session: Session) -> Result<(), StoreError> {
    unsettle(tx, &mut session);
    tx.remove_prefix(Tree::Contents, session.id.as_bytes())?;
    tx.remove_prefix(Tree::Analyses, session.id.as_bytes())?;
    sources::forget(tx, session.id)?;
    tx.remove(Tree::SessionKeys, Key::new().company(&session.company).text(&session.external_id).done());
    tx.remove(Tree::SessionsOf, keys::session_of(&session.company, session.id));
    tx.remove(Tree::Sessions, session.id.as_bytes().to_vec());
    Ok(())
}

/// Takes away what a session without requests has, for its age. What stays keeps the same from being bought again.
pub(super) fn expire(tx: &mut Tx<'_>, id: SessionId) -> Result<(), StoreError> {
    let session = load(tx, id)?;
    tx.remove_prefix(Tree::Contents, id.as_bytes())?;
    tx.remove_prefix(Tree::Analyses, id.as_bytes())?;
    sources::forget(tx, id)?;
    tx.remove(Tree::SessionsOf, keys::session_of(&session.company, id));
    let facts = SessionFacts::default();
    let state = SessionState::Expired;
    save(tx, &Session { facts, state, message_count: 0, request: None, ..session })
}

/// Takes a session out of those that settle.
fn unsettle(tx: &mut Tx<'_>, session: &mut Session) {
    if let Some(at) = session.settles_at.take() {
        tx.remove(Tree::Settling, settling_key(at, session.id));
    }
}

fn request_analysis(
    tx: &mut Tx<'_>,
    id: SessionId,
    version: u32,
    new: NewRequest,
    now: Timestamp,
) -> Result<bool, StoreError> {
    // It may have been erased since it was read.
    let Some(mut session) = tx.read::<Session>(Tree::Sessions, id.as_bytes())? else { return Ok(false) };
    if session.version != version || session.state != SessionState::Settling {
        return Ok(false);
    }
    unsettle(tx, &mut session);
    session.state = SessionState::Requested;
    let waiting = match session.request {
        Some(request) => Some(requests::load(tx, request)?)
            .filter(|request| request.status == RequestStatus::PendingBatching),
        None => None,
    };
    let request = match waiting {
        Some(mut request) => {
            requests::dequeue(tx, &request)?;
            let since = request.pending_since;
            request.group = new.group;
            request.source = new.source;
            request.line_bytes = new.line_bytes;
            request.line_crc = new.line_crc;
            request.estimated_tokens = new.estimated_tokens;
            request.stale = request.history.iter().map(|attempt| attempt.batch).collect();
            request.repair = None;
            request.repairs = 0;
            requests::enqueue(tx, &mut request, since)?;
            requests::save(tx, &request)?;
            request.id
        }
        None => requests::insert(tx, new, now)?,
    };
    session.request = Some(request);
    save(tx, &session)?;
    Ok(true)
}

/// Lets the session know what became of its request, if that is about its current version.
pub(super) fn note_request(
    tx: &mut Tx<'_>,
    request: &Request,
    state: SessionState,
) -> Result<(), StoreError> {
    let Source::Session { session, version, .. } = &request.source else { return Ok(()) };
    let mut session = load(tx, *session)?;
    if session.version == *version && session.state != state {
        session.state = state;
        save(tx, &session)?;
    }
    Ok(())
}

/// Whether a request asks about what its session has now.
pub(super) fn is_current(tx: &Tx<'_>, request: &Request) -> Result<bool, StoreError> {
    let Source::Session { session, version, .. } = &request.source else { return Ok(false) };
    Ok(load(tx, *session)?.version == *version)
}

/// Stores the analysis of one version; an older version's is kept but does not become the session's.
pub(super) fn note_analysis(tx: &mut Tx<'_>, request: &Request, analysis: &str) -> Result<(), StoreError> {
    let Source::Session { session, version, .. } = &request.source else { return Ok(()) };
    tx.put(Tree::Analyses, keys::content(*session, *version), analysis.as_bytes().to_vec());
    note_request(tx, request, SessionState::Analysed)
}

fn load(tx: &Tx<'_>, id: SessionId) -> Result<Session, StoreError> {
    tx.read(Tree::Sessions, id.as_bytes())?
        .ok_or_else(|| StoreError::Broken(format!("session {id} is named but not there")))
}

fn save(tx: &mut Tx<'_>, session: &Session) -> Result<(), StoreError> {
    tx.write(Tree::Sessions, session.id.as_bytes().to_vec(), session)
}

pub(super) fn settling_key(at: Timestamp, id: SessionId) -> Vec<u8> {
    Key::new().time(at).bytes(id.as_bytes()).done()
}

impl StoreReader {
    /// One session.
    pub fn session(&self, id: SessionId) -> Result<Option<Session>, StoreError> {
        self.read(Tree::Sessions, id.as_bytes())
    }

    /// The session that a company's export knows by this id.
    pub fn session_by_external_id(
        &self,
        company: &CompanyId,
        external_id: &str,
    ) -> Result<Option<Session>, StoreError> {
        let key = Key::new().company(company).text(external_id).done();
        match self.read::<SessionId>(Tree::SessionKeys, &key)? {
            Some(id) => self.session(id),
            None => Ok(None),
        }
    }

    /// At most `limit` sessions that have settled.
    pub fn settled(&self, now: Timestamp, limit: usize) -> Result<Vec<Session>, StoreError> {
        let end = Key::new().time(now.plus(std::time::Duration::from_millis(1))).done();
        let due = self.engine.scan(Tree::Settling, &[], Some(&end), limit)?;
        let ids = due.iter().filter_map(|(key, _)| keys::session_at_end(key));
        ids.filter_map(|id| self.session(id).transpose()).collect()
    }

    /// The content of one version of a session.
    pub fn content(&self, session: SessionId, version: u32) -> Result<Option<Content>, StoreError> {
        let bytes = self.text(Tree::Contents, &keys::content(session, version))?;
        bytes.map(|bytes| codec::decode(&bytes)).transpose()
    }

    /// The analysis of one version of a session, as JSON text.
    pub fn analysis(&self, session: SessionId, version: u32) -> Result<Option<String>, StoreError> {
        let bytes = self.engine.get(Tree::Analyses, &keys::content(session, version))?;
        bytes
            .map(|bytes| String::from_utf8(bytes).map_err(|err| StoreError::Codec(err.to_string())))
            .transpose()
    }
}

//! A disk with a cache that forgets: what a folder may look like after a power cut.
//!
//! Every file has the bytes that are surely on the disk and a list of writes that may be. A sync moves to the
//! disk what had ended before it began. Names are the same in small: a folder's names are sure once the folder
//! itself is synced. That is less than most file systems keep, so what survives here survives there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use super::trace::{Op, Token};

/// What a cut leaves of the writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Nothing.
    OnlySynced,
    /// A random half in random order, some of them torn between sectors.
    Half,
    /// All of them, as a kill does.
    All,
}

impl Mode {
    pub const EACH: [Self; 3] = [Self::OnlySynced, Self::Half, Self::All];
}

/// Random numbers from a seed (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    pub fn one_in(&mut self, choices: usize) -> bool {
        self.below(choices) == 0
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }
}

type Number = usize;

/// A change of a file's bytes.
#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Default)]
struct File {
    synced: Vec<u8>,
    live: Vec<u8>,
    /// In the order in which they began.
    pending: Vec<(Token, Change)>,
}

/// A change of a folder's names.
#[derive(Clone)]
enum Naming {
    Name(String, Number),
    Remove(String),
    Rename(String, String, Number),
}

#[derive(Default)]
struct Folder {
    synced: BTreeMap<String, Number>,
    live: BTreeMap<String, Number>,
    pending: Vec<Naming>,
}

enum Node {
    File(File),
    Folder(Folder),
}

struct Open {
    node: Number,
    position: u64,
}

/// A sync under way: what it will have made sure when it ends.
enum Syncing {
    File(Number, HashSet<Token>),
    Folder(Number, usize),
}

/// The folder that everything lies in, and what is known of the process that writes there.
pub struct Disk {
    root: String,
    nodes: Vec<Node>,
    open: HashMap<u32, Open>,
    unended: HashSet<Token>,
    syncs: HashMap<Token, Syncing>,
    /// fdatasync of a file of this name does nothing: the check that the test can fail.
    deaf: Option<&'static str>,
    /// Writes to bytes that were already on the disk, synced.
    pub rewrites: usize,
    /// Syncs that ended.
    pub syncs_done: usize,
}

impl Disk {
    /// An empty folder at `root`, which exists and is synced.
    pub fn new(root: &Path, deaf: Option<&'static str>) -> Self {
        Self {
            root: root.to_str().unwrap().to_owned(),
            nodes: vec![Node::Folder(Folder::default())],
            open: HashMap::new(),
            unended: HashSet::new(),
            syncs: HashMap::new(),
            deaf,
            rewrites: 0,
            syncs_done: 0,
        }
    }

    /// Lets one thing happen.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Start => {
                self.open.clear();
                // A process that is gone has ended all its writes.
                self.unended.clear();
            }
            Op::Opened { fd, path, create, truncate } => self.opened(*fd, path, *create, *truncate),
            Op::Close { fd } => drop(self.open.remove(fd)),
            Op::Seeked { fd, position } => {
                if let Some(open) = self.open.get_mut(fd) {
                    open.position = *position;
                }
            }
            Op::Write { token, fd, offset, data } => {
                let Some(open) = self.open.get_mut(fd) else { return };
                let at = offset.unwrap_or(open.position);
                if offset.is_none() {
                    open.position += data.len() as u64;
                }
                let node = open.node;
                self.change(node, *token, Change::Write(usize::try_from(at).unwrap(), data.clone()));
                self.unended.insert(*token);
            }
            Op::SetLength { token, fd, length } => {
                let Some(open) = self.open.get(fd) else { return };
                self.change(open.node, *token, Change::Length(usize::try_from(*length).unwrap()));
                self.unended.insert(*token);
            }
            Op::Sync { token, fd, data_only } => self.sync(*token, *fd, *data_only),
            Op::Done { token } => {
                self.unended.remove(token);
                if let Some(syncing) = self.syncs.remove(token) {
                    self.synced(syncing);
                }
            }
            Op::MadeFolder { path } => {
                if let Some((folder, name)) = self.place(path) {
                    let node = self.add(Node::Folder(Folder::default()));
                    self.folder(folder).name(Naming::Name(name, node));
                }
            }
            Op::Removed { path } => {
                if let Some((folder, name)) = self.place(path) {
                    self.folder(folder).name(Naming::Remove(name));
                }
            }
            Op::Renamed { from, to } => {
                let Some((folder, old)) = self.place(from) else { return };
                let (other, new) = self.place(to).expect("nothing leaves the folder");
                assert_eq!(folder, other, "the replay knows no move between folders");
                let node = self.folder(folder).live[&old];
                self.folder(folder).name(Naming::Rename(old, new, node));
            }
            Op::Acknowledged(_) => {}
        }
    }

    fn opened(&mut self, fd: u32, path: &str, create: bool, truncate: bool) {
        if path == self.root {
            self.open.insert(fd, Open { node: 0, position: 0 });
            return;
        }
        let Some((folder, name)) = self.place(path) else { return };
        let node = match self.folder(folder).live.get(&name) {
            Some(node) => *node,
            None => {
                assert!(create, "{path} was opened and never made");
                let node = self.add(Node::File(File::default()));
                self.folder(folder).name(Naming::Name(name, node));
                node
            }
        };
        if truncate {
            self.change(node, 0, Change::Length(0));
        }
        self.open.insert(fd, Open { node, position: 0 });
    }

    /// The folder that `path` lies in, and its name there; none for what is elsewhere.
    fn place(&mut self, path: &str) -> Option<(Number, String)> {
        let below = path.strip_prefix(&self.root)?.strip_prefix('/')?.trim_end_matches('/');
        let (folders, name) = below.rsplit_once('/').unwrap_or(("", below));
        let mut folder = 0;
        for step in folders.split('/').filter(|step| !step.is_empty()) {
            folder = self.folder(folder).live[step];
        }
        Some((folder, name.to_owned()))
    }

    fn add(&mut self, node: Node) -> Number {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn folder(&mut self, number: Number) -> &mut Folder {
        match &mut self.nodes[number] {
            Node::Folder(folder) => folder,
            Node::File(_) => panic!("a file is no folder"),
        }
    }

    fn change(&mut self, node: Number, token: Token, change: Change) {
        let Node::File(file) = &mut self.nodes[node] else { panic!("bytes written to a folder") };
        if let Change::Write(at, _) = &change
            && *at < file.synced.len()
        {
            self.rewrites += 1;
        }
        change.make(&mut file.live);
        file.pending.push((token, change));
    }

    fn sync(&mut self, token: Token, fd: u32, data_only: bool) {
        let Some(open) = self.open.get(&fd) else { return };
        let node = open.node;
        let syncing = match &self.nodes[node] {
            Node::Folder(folder) => Syncing::Folder(node, folder.pending.len()),
            Node::File(file) => {
                if data_only && self.deaf.is_some_and(|name| self.is_named(node, name)) {
                    return;
                }
                let tokens = file.pending.iter().map(|(token, _)| *token);
                Syncing::File(node, tokens.filter(|token| !self.unended.contains(token)).collect())
            }
        };
        self.syncs.insert(token, syncing);
    }

    fn is_named(&self, node: Number, name: &str) -> bool {
        self.nodes.iter().any(|other| match other {
            Node::Folder(folder) => folder.live.get(name) == Some(&node),
            Node::File(_) => false,
        })
    }

    fn synced(&mut self, syncing: Syncing) {
        self.syncs_done += 1;
        match syncing {
            Syncing::File(node, tokens) => {
                let Node::File(file) = &mut self.nodes[node] else { panic!("a folder is no file") };
                let File { synced, pending, .. } = file;
                pending.retain(|(token, change)| {
                    let covered = tokens.contains(token);
                    if covered {
                        change.make(synced);
                    }
                    !covered
                });
            }
            Syncing::Folder(node, count) => {
                let folder = self.folder(node);
                for naming in folder.pending.drain(..count).collect::<Vec<_>>() {
                    naming.make(&mut folder.synced);
                }
            }
        }
    }

    /// Writes what a power cut at this moment leaves into `into`, which exists.
    pub fn image(&self, mode: Mode, dice: &mut Dice, into: &Path) {
        self.write_folder(0, mode, dice, into);
    }

    fn write_folder(&self, number: Number, mode: Mode, dice: &mut Dice, into: &Path) {
        let Node::Folder(folder) = &self.nodes[number] else { panic!("a file is no folder") };
        for (name, node) in folder.left(mode, dice) {
            let path = into.join(name);
            match &self.nodes[node] {
                Node::Folder(_) => {
                    std::fs::create_dir(&path).unwrap();
                    self.write_folder(node, mode, dice, &path);
                }
                Node::File(file) => std::fs::write(&path, file.left(mode, dice)).unwrap(),
            }
        }
    }
}

impl Folder {
    fn name(&mut self, naming: Naming) {
        naming.make(&mut self.live);
        self.pending.push(naming);
    }

    fn left(&self, mode: Mode, dice: &mut Dice) -> BTreeMap<String, Number> {
        match mode {
            Mode::OnlySynced => self.synced.clone(),
            Mode::All => self.live.clone(),
            Mode::Half => {
                let mut names = self.synced.clone();
                for naming in self.pending.iter().filter(|_| dice.one_in(2)) {
                    naming.make(&mut names);
                }
                names
            }
        }
    }
}

impl Naming {
    fn make(&self, names: &mut BTreeMap<String, Number>) {
        match self {
            Self::Name(name, node) => drop(names.insert(name.clone(), *node)),
            Self::Remove(name) => drop(names.remove(name)),
            Self::Rename(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

impl File {
    fn left(&self, mode: Mode, dice: &mut Dice) -> Vec<u8> {
        match mode {
            Mode::OnlySynced => self.synced.clone(),
            Mode::All => self.live.clone(),
            Mode::Half => {
                let mut bytes = self.synced.clone();
                let mut pending: Vec<&Change> = self.pending.iter().map(|(_, change)| change).collect();
                dice.shuffle(&mut pending);
                for change in pending {
                    match dice.below(8) {
                        0..=3 => change.make_torn(&mut bytes, dice),
                        // The file has grown, and what was to fill it never came.
                        4 => change.make_room(&mut bytes),
                        _ => {}
                    }
                }
                bytes
            }
        }
    }
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                self.make_room(bytes);
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            Self::Length(length) => bytes.resize(*length, 0),
        }
    }

    fn make_room(&self, bytes: &mut Vec<u8>) {
        if let Self::Write(at, data) = self
            && bytes.len() < at + data.len()
        {
            bytes.resize(at + data.len(), 0);
        }
    }

    /// As a whole, or only some of the sectors, or the first of them.
    fn make_torn(&self, bytes: &mut Vec<u8>, dice: &mut Dice) {
        let Self::Write(at, data) = self else { return self.make(bytes) };
        let sector = [512, 4096][dice.below(2)];
        let (sectors, kind) = (data.len() / sector + 2, dice.below(4));
        let first = dice.below(sectors);
        if kind < 2 {
            return self.make(bytes);
        }
        self.make_room(bytes);
        let mut from = 0;
        for number in 0.. {
            // Sectors are those of the file, not of the write.
            let to = (from + sector - (at + from) % sector).min(data.len());
            let written = if kind == 2 { number < first } else { dice.one_in(2) };
            if written {
                bytes[at + from..at + to].copy_from_slice(&data[from..to]);
            }
            from = to;
            if from == data.len() {
                return;
            }
        }
    }
}

#[test]
fn only_what_a_sync_covers_and_what_its_folder_names_is_sure() {
    let write = |token, byte| Op::Write { token, fd: 3, offset: None, data: vec![byte; 2] };
    let mut disk = Disk::new(Path::new("/r"), None);
    let steps = [
        Op::Start,
        Op::Opened { fd: 3, path: "/r/a".to_owned(), create: true, truncate: false },
        write(1, b'x'),
        Op::Done { token: 1 },
        write(2, b'y'),
        Op::Sync { token: 3, fd: 3, data_only: true },
        // It ended after the sync had begun, so the sync says nothing of it.
        Op::Done { token: 2 },
        Op::Done { token: 3 },
    ];
    steps.iter().for_each(|op| disk.apply(op));
    let look = |disk: &Disk, mode| {
        let folder = tempfile::tempdir().unwrap();
        disk.image(mode, &mut Dice(1), folder.path());
        std::fs::read(folder.path().join("a")).ok()
    };
    assert_eq!(look(&disk, Mode::OnlySynced), None);
    assert_eq!(look(&disk, Mode::All).unwrap(), b"xxyy");
    disk.apply(&Op::Opened { fd: 4, path: "/r".to_owned(), create: false, truncate: false });
    disk.apply(&Op::Sync { token: 4, fd: 4, data_only: false });
    disk.apply(&Op::Done { token: 4 });
    assert_eq!(look(&disk, Mode::OnlySynced).unwrap(), b"xx");
}

//! What strace wrote about one process, as a list of operations in the order in which they happened.
//!
//! A call begins and ends; between the two its effect may or may not be there. Both ends are kept, because a
//! sync covers only the writes that had ended before it began.

use std::collections::HashMap;

/// Every call that may change a file, and those that are needed to know which file it is.
pub const CALLS: &str = "open,openat,creat,close,write,pwrite64,writev,pwritev,pwritev2,lseek,fsync,fdatasync,\
    sync_file_range,sync,syncfs,ftruncate,truncate,fallocate,copy_file_range,sendfile,splice,rename,renameat,\
    renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,dup,dup2,dup3";

/// The number of a call: its beginning and its end share it.
pub type Token = usize;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A process starts: no file is open.
    Start,
    /// A file or folder was opened as this descriptor.
    Opened { fd: u32, path: String, create: bool, truncate: bool },
    /// A descriptor is about to be closed.
    Close { fd: u32 },
    /// The position of a descriptor is this now.
    Seeked { fd: u32, position: u64 },
    /// A write has begun; without an offset it goes to the descriptor's position.
    Write { token: Token, fd: u32, offset: Option<u64>, data: Vec<u8> },
    /// A change of a file's length has begun.
    SetLength { token: Token, fd: u32, length: u64 },
    /// A sync has begun; `data_only` for fdatasync.
    Sync { token: Token, fd: u32, data_only: bool },
    /// The call with this number has ended well.
    Done { token: Token },
    /// A folder was made.
    MadeFolder { path: String },
    /// A name was removed.
    Removed { path: String },
    /// A name was changed.
    Renamed { from: String, to: String },
    /// The process said on standard output that something is stored.
    Acknowledged(String),
}

/// A call of which only the beginning was seen so far.
struct Begun {
    token: Token,
    name: String,
    args: Vec<String>,
}

/// Reads one trace to its end and adds it to `ops`.
pub fn read(trace: &str, ops: &mut Vec<Op>, next_token: &mut Token) {
    let mut begun: HashMap<&str, Begun> = HashMap::new();
    // What is open under which path: a folder is emptied by names below its descriptor.
    let mut open = HashMap::new();
    ops.push(Op::Start);
    for line in trace.lines() {
        let (thread, rest) = line.split_once(' ').unwrap_or_else(|| panic!("no thread: {}", cut(line)));
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        if rest.starts_with("<...") {
            let (_, end) = rest.split_once("resumed>").unwrap_or_else(|| panic!("{}", cut(line)));
            let call = begun.remove(thread).unwrap_or_else(|| panic!("ended, never began: {}", cut(line)));
            ended(&call, result(end), &mut open, ops);
            continue;
        }
        let (name, rest) = rest.split_once('(').unwrap_or_else(|| panic!("no call: {}", cut(line)));
        let unfinished = rest.strip_suffix("<unfinished ...>");
        let args = match unfinished {
            Some(args) => args,
            None => rest.rsplit_once(')').unwrap_or_else(|| panic!("no end: {}", cut(line))).0,
        };
        let args = args.trim_end().trim_end_matches(',').split(", ").map(str::to_owned).collect();
        *next_token += 1;
        let call = Begun { token: *next_token, name: name.to_owned(), args };
        began(&call, ops);
        if unfinished.is_some() {
            begun.insert(thread, call);
        } else {
            ended(&call, result(rest.rsplit_once(')').unwrap().1), &mut open, ops);
        }
    }
}

fn cut(line: &str) -> String {
    line.chars().take(300).collect()
}

/// What a call returned; none for an error, and for one that the end of the process cut off.
fn result(end: &str) -> Option<u64> {
    let (_, value) = end.rsplit_once("= ")?;
    value.split(' ').next()?.parse().ok()
}

fn began(call: &Begun, ops: &mut Vec<Op>) {
    let token = call.token;
    match call.name.as_str() {
        "write" => {
            let (fd, data) = (number(&call.args[0]), bytes(&call.args[1]));
            if fd != 1 {
                let fd = u32::try_from(fd).unwrap();
                ops.push(Op::Write { token, fd, offset: None, data });
            } else if let Some(said) = data.strip_prefix(b"ACK ") {
                // One line a write, so that what was said and when are one thing.
                let said = String::from_utf8(said.to_vec()).unwrap();
                assert!(said.ends_with('\n'), "half a line was said: {said:?}");
                ops.push(Op::Acknowledged(said.trim_end().to_owned()));
            }
        }
        "pwrite64" => {
            let (fd, data) = (descriptor(call), bytes(&call.args[1]));
            ops.push(Op::Write { token, fd, offset: Some(number(&call.args[3])), data });
        }
        "fsync" => ops.push(Op::Sync { token, fd: descriptor(call), data_only: false }),
        "fdatasync" => ops.push(Op::Sync { token, fd: descriptor(call), data_only: true }),
        "ftruncate" => {
            ops.push(Op::SetLength { token, fd: descriptor(call), length: number(&call.args[1]) });
        }
        // What goes to standard output or error in parts is no file.
        "writev" if number(&call.args[0]) <= 2 => {}
        "close" => ops.push(Op::Close { fd: descriptor(call) }),
        // It says nothing about what survives: sled believes in it, and must not be believed.
        "sync_file_range" | "open" | "openat" | "lseek" | "mkdir" | "mkdirat" | "unlink" | "unlinkat"
        | "rmdir" | "rename" | "renameat" | "renameat2" => {}
        // Silence here would make the images wrong.
        other => panic!("the replay does not know {other}({})", call.args.join(", ")),
    }
}

fn ended(call: &Begun, result: Option<u64>, open: &mut HashMap<u32, String>, ops: &mut Vec<Op>) {
    let Some(result) = result else { return };
    let path = |index: usize| {
        let path = String::from_utf8(bytes(&call.args[index])).unwrap();
        let below = index.checked_sub(1).and_then(|folder| call.args[folder].parse::<u32>().ok());
        match below.and_then(|folder| open.get(&folder)) {
            Some(folder) if !path.starts_with('/') => format!("{folder}/{path}"),
            Some(_) | None => path,
        }
    };
    match call.name.as_str() {
        "open" | "openat" => {
            let first = usize::from(call.name == "openat");
            let flags = &call.args[first + 1];
            let (fd, path) = (u32::try_from(result).unwrap(), path(first));
            open.insert(fd, path.clone());
            let (create, truncate) = (flags.contains("O_CREAT"), flags.contains("O_TRUNC"));
            ops.push(Op::Opened { fd, path, create, truncate });
        }
        "lseek" => ops.push(Op::Seeked { fd: descriptor(call), position: result }),
        "write" | "pwrite64" => {
            assert_eq!(result, number(&call.args[2]), "a write that wrote a part");
            ops.push(Op::Done { token: call.token });
        }
        "fsync" | "fdatasync" | "ftruncate" => ops.push(Op::Done { token: call.token }),
        "mkdir" => ops.push(Op::MadeFolder { path: path(0) }),
        "mkdirat" => ops.push(Op::MadeFolder { path: path(1) }),
        "unlink" | "rmdir" => ops.push(Op::Removed { path: path(0) }),
        "unlinkat" => ops.push(Op::Removed { path: path(1) }),
        "rename" => ops.push(Op::Renamed { from: path(0), to: path(1) }),
        "renameat" | "renameat2" => ops.push(Op::Renamed { from: path(1), to: path(3) }),
        _ => {}
    }
}

fn descriptor(call: &Begun) -> u32 {
    u32::try_from(number(&call.args[0])).unwrap()
}

fn number(arg: &str) -> u64 {
    arg.parse().unwrap_or_else(|_| panic!("no number: {}", cut(arg)))
}

/// `"\x61\x62"`; a text that strace cut short would make the images wrong.
fn bytes(arg: &str) -> Vec<u8> {
    let inner = arg.strip_prefix('"').and_then(|arg| arg.strip_suffix('"'));
    let inner = inner.unwrap_or_else(|| panic!("no text, or one cut short: {}", cut(arg)));
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap();
    let hex = inner.as_bytes().chunks_exact(4);
    assert!(hex.remainder().is_empty(), "no hex: {}", cut(arg));
    hex.map(|hex| digit(hex[2]) << 4 | digit(hex[3])).collect()
}

#[test]
fn a_name_below_an_open_folder_is_known_by_its_path() {
    let trace = "\
10 openat(AT_FDCWD, \"\\x2f\\x61\", O_RDONLY|O_DIRECTORY) = 7
10 unlinkat(7, \"\\x62\", 0) = 0
10 unlinkat(AT_FDCWD, \"\\x2f\\x61\", AT_REMOVEDIR) = 0
";
    let mut ops = Vec::new();
    read(trace, &mut ops, &mut 0);
    let removed = |path: &str| Op::Removed { path: path.to_owned() };
    assert_eq!(ops[2..], [removed("/a/b"), removed("/a")]);
}

#[test]
fn calls_of_threads_that_cross_are_put_together() {
    let trace = "\
10 openat(AT_FDCWD, \"\\x2f\\x61\", O_RDWR|O_CREAT|O_CLOEXEC, 0666) = 7
10 pwrite64(7, \"\\x00\\xff\", 2, 512 <unfinished ...>
11 fdatasync(7 <unfinished ...>
10 <... pwrite64 resumed>)               = 2
11 <... fdatasync resumed>)              = 0
10 openat(AT_FDCWD, \"\\x2f\\x62\", O_RDONLY) = -1 ENOENT (No such file or directory)
10 write(1, \"\\x41\\x43\\x4b\\x20\\x68\\x69\\x0a\", 7) = 7
11 pwrite64(7, \"\\x01\", 1, 0 <unfinished ...>
10 +++ exited with 0 +++
";
    let mut ops = Vec::new();
    read(trace, &mut ops, &mut 0);
    let expected = [
        Op::Start,
        Op::Opened { fd: 7, path: "/a".to_owned(), create: true, truncate: false },
        Op::Write { token: 2, fd: 7, offset: Some(512), data: vec![0, 255] },
        Op::Sync { token: 3, fd: 7, data_only: true },
        Op::Done { token: 2 },
        Op::Done { token: 3 },
        Op::Acknowledged("hi".to_owned()),
        Op::Done { token: 5 },
        Op::Write { token: 6, fd: 7, offset: Some(0), data: vec![1] },
    ];
    assert_eq!(ops, expected);
}

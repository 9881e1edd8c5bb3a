//! The disk below the data folder: how much room there is, what is done before there is none, and what a failed
//! write means.
//!
//! sled cannot go on after a write that found no room, and cannot even open on a full disk. So work stops at a floor of
//! free space, long before that, and a ballast file is kept that can be given back. Nothing here ends the program but a
//! failed sync of a file, after which nobody knows what the disk has.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::condition::{Condition, Hindrance};

/// Name of the ballast in the data folder.
pub const BALLAST: &str = "ballast";

/// How often the disk is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The pause before a write that found no room is tried again.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);
/// So long such a write counts as the state of the disk, unless it goes well before.
const REFUSED_COUNTS: Duration = Duration::from_secs(5);
/// With fewer files to be made than this there is no room, whatever the bytes.
const FILES_MIN: u64 = 16;

/// Told when nothing may go on; it ends the process.
pub type OnFatal = Box<dyn Fn(&str) + Send + Sync>;

/// What is wanted of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// The data folder.
    pub folder: PathBuf,
    /// With less free space than this nothing is taken in or sent; at most a tenth of the file system.
    pub floor: u64,
    /// How large the ballast is; at most a twentieth of the file system, or what the opening of a store takes.
    pub ballast: u64,
}

impl Bounds {
    fn floor_of(&self, space: &Space) -> u64 {
        self.floor.min(space.total / 10)
    }

    fn ballast_of(&self, space: &Space) -> u64 {
        // Opening a store may take a segment of 8 MiB, also on a small disk.
        self.ballast.min((space.total / 20).max((10 << 20).min(space.total / 4)))
    }
}

/// The room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that may be written.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
    /// Whether no more files can be made.
    pub out_of_files: bool,
}

impl Space {
    /// The room below `folder`.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(folder)?;
        Ok(Self {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            // Some file systems make room for files as they need it, and count none.
            out_of_files: stat.f_files > 0 && stat.f_favail < FILES_MIN,
        })
    }
}

/// A sync that failed: what the disk has of the file is not known, and must not be asked again.
#[derive(Debug, thiserror::Error)]
#[error("it could not be synced to disk")]
struct SyncFailed(#[source] io::Error);

/// Marks the error of a sync, so that it is known later; one for lack of room stays what it is.
pub fn sync_failed(err: io::Error) -> io::Error {
    if is_no_room(&err) { err } else { io::Error::other(SyncFailed(err)) }
}

fn is_sync_failed(err: &io::Error) -> bool {
    err.get_ref().is_some_and(|inner| inner.is::<SyncFailed>())
}

/// Whether a write failed because there is no room for it.
pub fn is_no_room(err: &io::Error) -> bool {
    matches!(err.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Gives the ballast back if the disk is so full that the store might not open. Says whether it did.
pub fn make_openable(folder: &Path) -> bool {
    let path = folder.join(BALLAST);
    let (Ok(ballast), Ok(space)) = (std::fs::metadata(&path), Space::of(folder)) else { return false };
    space.free < ballast.len() && give_back(&path, &space)
}

fn give_back(path: &Path, space: &Space) -> bool {
    match std::fs::remove_file(path) {
        Ok(()) => {
            tracing::warn!(path = %path.display(), "the disk has only {} free: the ballast is given back, so that the store can be opened", size(space.free));
            true
        }
        Err(err) if err.kind() == ErrorKind::NotFound => false,
        Err(err) => {
            tracing::error!(path = %path.display(), error = %err, "the ballast cannot be given back");
            false
        }
    }
}

/// Whether files can be made in `folder`; a lack of room is not told here, for it passes.
pub fn check_writable(folder: &Path) -> io::Result<()> {
    let path = folder.join(".probe");
    match File::create(&path).and_then(|_| std::fs::remove_file(&path)) {
        Err(err) if !is_no_room(&err) => Err(err),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The disk of a running service. Clones of its `Arc` share one view.
pub struct Disk {
    bounds: Bounds,
    condition: Arc<Condition>,
    on_fatal: OnFatal,
    state: Mutex<State>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Disk({})", self.bounds.folder.display())
    }
}

/// What there is no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// Files, whatever their size.
    Files,
    /// Anything above the floor.
    Floor,
    /// What was written a moment ago.
    Write,
    /// A file that is to be written.
    Want,
}

#[derive(Debug, Default)]
struct State {
    /// Below the floor, and not yet well above it again.
    low: bool,
    /// A write that found no room although there seemed to be some, and when.
    refused: Option<(Instant, String)>,
    /// Who needs how many bytes, and whether they were granted.
    wants: BTreeMap<u64, (u64, bool)>,
    next_want: u64,
    /// What was told last, and the free bytes then.
    told: Option<(Lack, u64)>,
}

impl State {
    fn granted(&self) -> u64 {
        self.wants.values().filter(|(_, granted)| *granted).map(|(bytes, _)| bytes).sum()
    }

    /// What waits for room although nobody else has it.
    fn unmet(&self, room: u64) -> Option<u64> {
        if self.wants.values().any(|(_, granted)| *granted) {
            return None;
        }
        self.wants.values().map(|(bytes, _)| *bytes).filter(|bytes| *bytes > room).min()
    }
}

/// Room that was granted; given back when it is dropped.
#[derive(Debug)]
pub struct Room<'a> {
    disk: &'a Disk,
    want: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.disk.lock().wants.remove(&self.want);
    }
}

impl Disk {
    /// Watches the disk of `bounds` and tells `condition`. `on_fatal` is called when a sync failed.
    pub fn new(bounds: Bounds, condition: Arc<Condition>, on_fatal: OnFatal) -> Self {
        Self { bounds, condition, on_fatal, state: Mutex::default() }
    }

    /// What it tells.
    pub fn condition(&self) -> Arc<Condition> {
        self.condition.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the disk, raises or clears the hindrance, and says whether there is room for new work.
    pub fn look(&self) -> bool {
        let space = match Space::of(&self.bounds.folder) {
            Ok(space) => space,
            Err(err) => {
                tracing::warn!(path = %self.bounds.folder.display(), error = %err, "the free space is not known");
                return !self.lock().low;
            }
        };
        let mut state = self.lock();
        let why = self.judge(&mut state, &space);
        let has_room = why.is_none();
        // The lock is held on purpose: two looks must not tell their findings in the wrong order.
        match why {
            Some((lack, why)) => {
                // Not every byte is news: the log would have a line a second.
                let news = self.bounds.floor_of(&space) / 10;
                if state.told.is_none_or(|(told, free)| told != lack || free.abs_diff(space.free) > news) {
                    state.told = Some((lack, space.free));
                    self.condition.raise(Hindrance::Disk, why);
                }
            }
            None => {
                state.told = None;
                self.condition.clear(Hindrance::Disk);
            }
        }
        has_room
    }

    /// What is wrong with the disk, if something is.
    fn judge(&self, state: &mut State, space: &Space) -> Option<(Lack, String)> {
        let (folder, floor) = (self.bounds.folder.display(), self.bounds.floor_of(space));
        // Well above: what was just freed must not be filled and freed again in turns.
        let enough = if state.low { floor + floor / 8 } else { floor };
        state.low = space.free < enough || space.out_of_files;
        if state.refused.as_ref().is_some_and(|(at, _)| at.elapsed() > REFUSED_COUNTS) {
            state.refused = None;
        }
        let remedy =
            "Nothing is taken in or sent. Make room, or the disk larger: everything goes on by itself";
        let free = size(space.free);
        if space.out_of_files {
            let why =
                format!("the file system of {folder} has no room for more files (its inodes are used up)");
            return Some((Lack::Files, format!("{why}. {remedy}")));
        }
        let bound = format!("the floor is {} ([data] free_space_floor)", size(floor));
        if state.low {
            return Some((Lack::Floor, format!("the disk of {folder} has {free} free; {bound}. {remedy}")));
        }
        if let Some((_, what)) = &state.refused {
            return Some((Lack::Write, format!("{what}; the disk of {folder} has {free} free. {remedy}")));
        }
        let bytes = size(state.unmet(space.free - floor)?);
        let why = format!("the disk of {folder} has {free} free and {bound}");
        Some((Lack::Want, format!("{why}: a file of {bytes} that is to be written has no room. {remedy}")))
    }

    /// Waits until a file of `bytes` can be written and the floor still be kept.
    pub async fn room_for(&self, bytes: u64) -> Room<'_> {
        let room = self.want(bytes);
        while !self.grant(room.want, bytes) {
            self.look();
            tokio::time::sleep(LOOK_EVERY).await;
        }
        room
    }

    /// Room for a file of `bytes`, if there is some now: for what can wait, and is no reason to stop the work.
    pub fn room_now(&self, bytes: u64) -> Option<Room<'_>> {
        let room = self.want(bytes);
        self.grant(room.want, bytes).then_some(room)
    }

    fn want(&self, bytes: u64) -> Room<'_> {
        let mut state = self.lock();
        state.next_want += 1;
        let want = state.next_want;
        state.wants.insert(want, (bytes, false));
        Room { disk: self, want }
    }

    fn grant(&self, want: u64, bytes: u64) -> bool {
        let Ok(space) = Space::of(&self.bounds.folder) else { return true };
        let floor = self.bounds.floor_of(&space);
        let mut state = self.lock();
        let needed = floor.saturating_add(state.granted()).saturating_add(bytes);
        let granted = !state.low && !space.out_of_files && space.free >= needed;
        if granted {
            state.wants.insert(want, (bytes, true));
        }
        granted
    }

    /// Waits until there is room enough to end what is at home already: half of the floor.
    pub async fn room_to_finish(&self) {
        loop {
            match Space::of(&self.bounds.folder) {
                Ok(space) if space.free < self.bounds.floor_of(&space) / 2 || space.out_of_files => {
                    self.look();
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Returns when the floor is reached.
    pub async fn until_low(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY / 2).await;
            self.look();
            if self.lock().low {
                return;
            }
        }
    }

    /// Judges a failed write of a file of ours. For lack of room it waits a while, and true is returned: try again. A
    /// failed sync ends the process.
    pub async fn is_to_be_tried_again(&self, path: &Path, err: &io::Error) -> bool {
        if is_sync_failed(err) {
            let why = std::error::Error::source(err)
                .map_or_else(|| err.to_string(), |source| format!("{err}: {source}"));
            (self.on_fatal)(&format!("{}: {why}", path.display()));
            return false;
        }
        if !is_no_room(err) {
            return false;
        }
        self.lock().refused =
            Some((Instant::now(), format!("{} could not be written: {err}", path.display())));
        self.look();
        tokio::time::sleep(REFUSED_PAUSE).await;
        true
    }

    /// A write went well, so an earlier one that did not says nothing any more.
    pub fn written(&self) {
        if self.lock().refused.take().is_some() {
            self.look();
        }
    }

    /// Looks again and again, and keeps the ballast, for as long as it is polled.
    pub async fn watch(self: Arc<Self>) {
        loop {
            let disk = self.clone();
            let looked = tokio::task::spawn_blocking(move || {
                if disk.look() {
                    disk.keep_ballast();
                }
            });
            if let Err(err) = looked.await {
                tracing::error!(error = %err, "looking at the disk panicked");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Makes the ballast where it is missing and there is plenty of room for it.
    fn keep_ballast(&self) {
        let path = self.bounds.folder.join(BALLAST);
        let Ok(space) = Space::of(&self.bounds.folder) else { return };
        let (wanted, floor) = (self.bounds.ballast_of(&space), self.bounds.floor_of(&space));
        let there = std::fs::metadata(&path).map_or(0, |file| file.len());
        if there == wanted {
            return;
        }
        let free = space.free.saturating_add(there);
        if wanted > 0 && free < wanted.saturating_add(floor).saturating_add(floor / 4) {
            return;
        }
        let made =
            remove_if_there(&path).and_then(|()| if wanted == 0 { Ok(()) } else { allocate(&path, wanted) });
        match made {
            Ok(()) => tracing::debug!(path = %path.display(), bytes = wanted, "the ballast is there"),
            Err(err) => {
                // Half a ballast is none.
                let _ = remove_if_there(&path);
                tracing::warn!(path = %path.display(), error = %err, "the ballast cannot be made; tried again");
            }
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != ErrorKind::NotFound => Err(err),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A file of `bytes` that really takes them.
fn allocate(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().create_new(true).write(true).open(path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            // Not all zeros, which some file systems keep as nothing.
            let block: Vec<u8> =
                (0..1_u32 << 16).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
            let mut left = bytes;
            while left > 0 {
                let part = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
                file.write_all(&block[..part])?;
                left -= part as u64;
            }
            Ok(())
        }
        Err(err) => Err(err.into()),
    }
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "KB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: Space = Space { free: 0, total: 10_000, out_of_files: false };

    fn disk(folder: &Path, floor: u64) -> (Disk, Arc<Condition>) {
        let condition = Arc::new(Condition::new());
        let bounds = Bounds { folder: folder.to_owned(), floor, ballast: 1 << 20 };
        (Disk::new(bounds, condition.clone(), Box::new(|_| {})), condition)
    }

    fn judged(disk: &Disk, state: &mut State, free: u64) -> bool {
        disk.judge(state, &Space { free, ..SPACE }).is_some()
    }

    #[test]
    fn the_floor_is_left_only_well_above_it_and_is_a_tenth_of_a_small_disk() {
        let (disk, _) = disk(Path::new("/data"), 800);
        let mut state = State::default();
        assert!(!judged(&disk, &mut state, 800));
        assert!(judged(&disk, &mut state, 799));
        assert!(judged(&disk, &mut state, 899));
        assert!(!judged(&disk, &mut state, 900));
        let (disk, _) = self::disk(Path::new("/data"), u64::MAX);
        assert!(judged(&disk, &mut state, 999));
        let (_, text) = disk.judge(&mut state, &SPACE).unwrap();
        for part in ["/data", "0 bytes free", "1.0 KB", "free_space_floor", "Make room"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_file_that_has_no_room_stops_the_work_and_one_that_waits_for_another_does_not() {
        let (disk, _) = disk(Path::new("/data"), 800);
        let mut state = State::default();
        state.wants.insert(1, (200, false));
        assert!(judged(&disk, &mut state, 999));
        assert!(!judged(&disk, &mut state, 1_000));
        state.wants.insert(2, (200, true));
        assert!(!judged(&disk, &mut state, 999));
    }

    #[tokio::test]
    async fn a_write_without_room_is_told_until_one_goes_well_and_a_failed_sync_is_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, condition) = disk(folder.path(), 0);
        assert!(disk.look());
        let full = io::Error::from(ErrorKind::StorageFull);
        assert!(disk.is_to_be_tried_again(Path::new("a"), &full).await);
        assert!(condition.intake_stopped().unwrap().1.contains("a could not be written"));
        disk.written();
        assert_eq!(condition.intake_stopped(), None);
        let other = io::Error::from(ErrorKind::PermissionDenied);
        assert!(!disk.is_to_be_tried_again(Path::new("a"), &other).await);

        let told = Arc::new(Mutex::new(String::new()));
        let tell = told.clone();
        let fatal = Box::new(move |why: &str| tell.lock().unwrap().push_str(why));
        let bounds = Bounds { folder: folder.path().to_owned(), floor: 0, ballast: 0 };
        let disk = Disk::new(bounds, condition, fatal);
        let failed = sync_failed(io::Error::from_raw_os_error(5));
        assert!(!disk.is_to_be_tried_again(Path::new("b"), &failed).await);
        let told = told.lock().unwrap();
        assert!(told.contains("b: it could not be synced") && told.contains("os error 5"), "{told}");
        assert!(is_no_room(&sync_failed(full)));
    }

    #[test]
    fn the_ballast_takes_its_room_and_is_given_back_where_there_is_little() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let (disk, _) = disk(folder.path(), 0);
        disk.keep_ballast();
        let path = folder.path().join(BALLAST);
        let file = std::fs::metadata(&path).unwrap();
        assert_eq!(file.len(), 1 << 20);
        assert!(file.blocks() * 512 >= 1 << 20);
        assert!(!make_openable(folder.path()) && path.exists(), "there is room");
        // Longer than any disk has room: as if there were less.
        File::options().write(true).open(&path).unwrap().set_len(1 << 43).unwrap();
        assert!(make_openable(folder.path()) && !path.exists());
        disk.keep_ballast();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    }

    #[test]
    fn a_folder_that_takes_no_files_is_told() {
        let folder = tempfile::tempdir().unwrap();
        check_writable(folder.path()).unwrap();
        assert!(check_writable(&folder.path().join("gone")).is_err());
    }
}

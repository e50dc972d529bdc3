//! The session store when things go wrong: damaged files, sudden deaths, disks that are full or cannot be written.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use headinfer_core::engine::Session;
use headinfer_core::model::random::random_weights;
use headinfer_core::store::{Reads, Store, StoreOptions};

use crate::placement::{Case, cases};
use crate::run::logits;
use crate::store::{files, fill, folder, options, plain, prefill, restore, trail, walk};
use crate::support::{Draw, tiny};

/// Names the folder and the first text for [`a_child_stores_until_it_is_killed`].
const CHILD: &str = "HEADINFER_TEST_STORE";

fn case() -> Case {
    cases().into_iter().max_by_key(|case| case.ids.len() / case.chunk).unwrap()
}

/// Does one kind of harm to one of `files`; the number of the first interval that is harmed.
fn damage(draw: &mut Draw, order: &[PathBuf], foreign: &Path) -> (usize, &'static str) {
    let at = draw.below(order.len());
    let path = &order[at];
    let bytes = fs::read(path).unwrap();
    let cut = |n: usize| fs::write(path, &bytes[..n]).unwrap();
    let patch = |offset: usize, patch: &[u8]| {
        fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(patch, offset as u64).unwrap();
    };
    let what = match draw.below(13) {
        0..4 => {
            let offset = draw.below(bytes.len());
            patch(offset, &[bytes[offset] ^ 1 << draw.below(8)]);
            "a bit flips"
        }
        4 => {
            cut(draw.below(bytes.len()));
            "cut anywhere"
        }
        5 => {
            cut(draw.below(bytes.len() / 4096) * 4096);
            "cut at a block"
        }
        6 => {
            fs::write(path, [&bytes[..], &[0; 4096]].concat()).unwrap();
            "longer"
        }
        7 => {
            let other = (at + 1 + draw.below(order.len() - 1)) % order.len();
            let theirs = fs::read(&order[other]).unwrap();
            fs::write(path, theirs).unwrap();
            fs::write(&order[other], &bytes).unwrap();
            return (at.min(other), "two files swap");
        }
        8 => {
            fs::copy(foreign, path).unwrap();
            "of another model"
        }
        9 => {
            patch(16, &(2 + draw.below(100) as u32).to_le_bytes());
            "another version"
        }
        10 => {
            patch(20 + 4 * draw.below(5), &[0xff; 4]);
            "huge counts"
        }
        11 => {
            let start = draw.below(bytes.len() / 4096) * 4096;
            patch(start, &vec![0; bytes.len() - start]);
            "zeros from a block on, as after a loss of power"
        }
        _ => {
            fs::remove_file(path).unwrap();
            match draw.below(2) {
                0 => fs::create_dir(path).unwrap(),
                _ => std::os::unix::fs::symlink(foreign, path).unwrap(),
            }
            "no plain file"
        }
    };
    if fs::read(path).is_ok_and(|now| now == bytes) { (order.len(), "nothing") } else { (at, what) }
}

/// The files of the case's chain, in its order.
fn in_order(dir: &Path) -> Vec<PathBuf> {
    let files = files(dir);
    let halves = |path: &PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        name.split_once('-').map(|(parent, key)| (parent.to_owned(), key.to_owned())).unwrap()
    };
    let keys: Vec<String> = files.iter().map(|path| halves(path).1).collect();
    let first = files.iter().find(|path| !keys.contains(&halves(path).0)).unwrap();
    let mut order = vec![first.clone()];
    while let Some(next) = files.iter().find(|path| halves(path).0 == halves(order.last().unwrap()).1) {
        order.push(next.clone());
    }
    assert_eq!(order.len(), files.len());
    order
}

#[test]
fn a_damaged_file_costs_its_tokens_and_one_warning_and_never_an_answer() {
    let case = case();
    let expected = walk(&mut plain(&case), &case);
    let (sound, theirs) = (folder(), folder());
    fill(sound.path(), &case);
    let other = Case { ids: case.ids.iter().map(|id| (id + 1) % 97).collect(), ..self::case() };
    fill(theirs.path(), &other);
    let foreign = files(theirs.path()).remove(0);
    let order: Vec<_> = in_order(sound.path()).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    let whole = (case.ids.len() - 1) / case.chunk;
    let mut draw = Draw(31);
    let mut kinds = BTreeSet::new();
    for round in 0..240 {
        let dir = folder();
        let copies: Vec<PathBuf> = order.iter().map(|name| dir.path().join(name)).collect();
        for (name, to) in order.iter().zip(&copies) {
            fs::copy(sound.path().join(name), to).unwrap();
        }
        let (first, what) = damage(&mut draw, &copies, &foreign);
        kinds.insert(what);
        let reads = [Reads::Auto, Reads::Threads][round / 4 % 2];
        let store = Store::open(dir.path(), &StoreOptions { reads, ..options(&case) }).unwrap();
        let mut session = plain(&case);
        let mut trail = trail(&store, &case, &session);
        let restored = restore(&mut session, &mut trail, &case.ids);
        assert_eq!(restored, first.min(whole) * case.chunk, "{what}");
        assert_eq!(store.stats().warnings, u64::from(first < whole), "{what}");
        // Asked for again, the same file is not spoken of again.
        assert_eq!(restore(&mut session, &mut trail, &case.ids), restored);
        assert_eq!(store.stats().warnings, u64::from(first < whole), "{what}");
        if round % 4 == 0 {
            assert!(walk(&mut session, &case) == expected, "{what}");
        }
    }
    assert!(kinds.len() >= 9, "{kinds:?}");
}

#[test]
fn what_was_damaged_is_written_anew() {
    let case = case();
    let dir = folder();
    let stored = fill(dir.path(), &case);
    let order = in_order(dir.path());
    let bytes = fs::read(&order[1]).unwrap();
    fs::write(&order[1], &bytes[..bytes.len() / 2]).unwrap();
    let store = Store::open(dir.path(), &options(&case)).unwrap();
    let mut session = plain(&case);
    let mut first = trail(&store, &case, &session);
    assert_eq!(restore(&mut session, &mut first, &case.ids), case.chunk);
    let kept = prefill(&mut session, &mut first, &case.ids[case.chunk..]);
    assert_eq!((kept.stored, store.stats().written_files), (stored, 1));
    assert_eq!(fs::read(&order[1]).unwrap(), bytes, "the same tokens make the same file");
}

/// A model whose files take several writes each, so that a death can fall between two.
fn heavy(seed: usize) -> Case {
    let spec = tiny(4, 8, 8, 128);
    let weights = Arc::new(random_weights(&spec, 3));
    let ids = (0..1100).map(|i| ((i * i + seed) % spec.vocab) as u32).collect();
    Case { spec, weights, ids, chunk: 512 }
}

/// Room for about ten files: older ones go while new ones come.
fn tight(case: &Case) -> StoreOptions {
    StoreOptions { bytes_max: 96 << 20, ..options(case) }
}

/// Not a test of its own: what the next one kills.
#[test]
fn a_child_stores_until_it_is_killed() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let (folder, first) = folder.rsplit_once(' ').unwrap();
    let case = heavy(0);
    let store = Store::open(Path::new(folder), &tight(&case)).unwrap();
    let mut session = plain(&case);
    let mut trail = trail(&store, &case, &session);
    for seed in first.parse().unwrap().. {
        session.rewind(0);
        let ids = heavy(seed).ids;
        let restored = restore(&mut session, &mut trail, &ids);
        prefill(&mut session, &mut trail, &ids[restored..]);
    }
}

/// Lets a child work on texts from `first` on and kills it in the midst of it, some new files later.
fn kill_a_child(dir: &Path, first: usize, known: &mut BTreeSet<PathBuf>, draw: &mut Draw) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store_faults::a_child_stores_until_it_is_killed", "--nocapture"])
        .env(CHILD, format!("{} {first}", dir.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let partial = || {
        let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
        names.into_iter().any(|name| name.to_string_lossy().ends_with("partial"))
    };
    let enough = known.len() + draw.below(3);
    while known.len() < enough || !partial() {
        known.extend(files(dir));
        assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
    }
    (0..draw.below(3_000_000)).for_each(|_| std::hint::spin_loop());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn death_at_any_moment_leaves_sound_prefixes_only() {
    let dir = folder();
    let mut draw = Draw(41);
    let (mut known, mut first, mut checked) = (BTreeSet::new(), 0, 0);
    for _ in 0..50 {
        kill_a_child(dir.path(), first, &mut known, &mut draw);
        let case = heavy(first);
        let store = Store::open(dir.path(), &tight(&case)).unwrap();
        // The text that the last death cut short, and those begun since.
        for seed in first.. {
            let case = heavy(seed);
            let mut session = plain(&case);
            let mut trail = trail(&store, &case, &session);
            let restored = restore(&mut session, &mut trail, &case.ids);
            assert_eq!((restored, store.stats().warnings), (trail.available(&case.ids), 0));
            if restored > 0 {
                assert!(kv(&mut session, restored) == fresh_kv(&case, restored), "text {seed}");
                checked += 1;
            }
            if restored < 1024 {
                first = seed;
                break;
            }
        }
    }
    eprintln!("{} files were finished and {checked} prefixes came back over 50 deaths", known.len());
}

fn kv(session: &mut Session, rows: usize) -> Vec<u8> {
    let mut kv = vec![0; rows * session.plan().kv_bytes_per_token() as usize];
    session.read_rows(0..rows, &mut kv).unwrap();
    kv
}

fn fresh_kv(case: &Case, rows: usize) -> Vec<u8> {
    let mut session = plain(case);
    logits(&mut session, &case.ids[..rows], 1);
    kv(&mut session, rows)
}

#[test]
fn half_written_files_of_the_dead_are_cleared_away_and_those_of_the_living_are_not() {
    let case = case();
    let dir = folder();
    let dead = dir.path().join("a.kv.1-2-3.partial");
    let alive = dir.path().join("b.kv.1-2-3.partial");
    fs::write(&dead, "x").unwrap();
    let writer = fs::File::create(&alive).unwrap();
    writer.lock().unwrap();
    fill(dir.path(), &case);
    assert!(!dead.exists() && alive.exists());
}

#[test]
fn a_disk_that_refuses_is_worked_without_and_tried_again() {
    let case = case();
    let dir = folder();
    let place = dir.path().join("store");
    let store = Store::open(&place, &options(&case)).unwrap();
    fs::remove_dir(&place).unwrap();
    fs::write(&place, "in the way").unwrap();
    let mut session = plain(&case);
    let mut trail = trail(&store, &case, &session);
    let kept = prefill(&mut session, &mut trail, &case.ids);
    assert_eq!((kept.stored, store.stats().warnings), (0, 1));
    fs::remove_file(&place).unwrap();
    fs::create_dir(&place).unwrap();
    let stored = (0..200).map(|_| trail.finish(&mut session).unwrap()).find(|kept| kept.behind == 0);
    assert!(stored.is_some(), "the backlog is in the session and is given once the disk takes it");
    assert_eq!(files(&place).len(), case.ids.len() / case.chunk);
    assert_eq!(store.stats().warnings, 1);
    assert!(walk(&mut session, &Case { ids: [&case.ids[..], &[5; 30]].concat(), ..self::case() }).len() > 1);
}

/// A small file system in memory at `at`; `None` where the system does not let us.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(at: &'a Path, bytes: u64) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let mounted = mount(&["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700"), "none"], at);
        if !mounted {
            eprintln!("skipped: this system does not let us mount a file system");
        }
        mounted.then_some(Self(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn mount(arguments: &[&str], at: &Path) -> bool {
    let mut mount = Command::new("mount");
    mount.args(arguments).arg(at).stderr(Stdio::null());
    mount.status().is_ok_and(|status| status.success())
}

#[test]
fn a_full_disk_and_a_read_only_one_give_one_warning_and_right_answers() {
    let case = case();
    let dir = folder();
    let place = dir.path().join("disk");
    let one = {
        let dir = folder();
        fill(dir.path(), &case);
        files(dir.path())[0].metadata().unwrap().len()
    };
    let Some(_mounted) = Mounted::new(&place, 2 * one + one / 2) else { return };
    let store = Store::open(&place, &options(&case)).unwrap();
    let mut session = plain(&case);
    let mut full = trail(&store, &case, &session);
    let kept = prefill(&mut session, &mut full, &case.ids);
    assert_eq!((kept.stored, store.stats().warnings), (2 * case.chunk, 1));
    drop((full, store));
    assert!(mount(&["-o", "remount,ro"], &place));
    let store = Store::open(&place, &options(&case)).unwrap();
    let mut session = plain(&case);
    let mut fixed = trail(&store, &case, &session);
    assert_eq!(restore(&mut session, &mut fixed, &case.ids), 2 * case.chunk);
    let kept = prefill(&mut session, &mut fixed, &case.ids[2 * case.chunk..]);
    assert_eq!((kept.stored, store.stats().warnings), (2 * case.chunk, 1));
    session.rewind(2 * case.chunk);
    assert!(walk(&mut session, &case) == walk(&mut plain(&case), &case));
}

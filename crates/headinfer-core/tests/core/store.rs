//! The session store: what is restored has the bits that were never stored, under any placement, within its limits.

use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use headinfer_core::cpu::CpuOptions;
use headinfer_core::engine::Session;
use headinfer_core::model::config::load_config;
use headinfer_core::model::{ModelDigest, Weights};
use headinfer_core::plan::Overrides;
use headinfer_core::store::{Kept, Reads, Store, StoreError, StoreOptions, Trail, buffer_bytes};
use tempfile::TempDir;

use crate::placement::{Case, bounded, cases, random_request};
use crate::run::{logits, open};
use crate::support::Draw;

pub(crate) fn options(case: &Case) -> StoreOptions {
    StoreOptions { interval_min: case.chunk, ..StoreOptions::default() }
}

pub(crate) fn plain(case: &Case) -> Session {
    open(&case.spec, &case.weights, &bounded(case, Overrides::default()), &CpuOptions::default())
}

pub(crate) fn digest(case: &Case) -> ModelDigest {
    ModelDigest::of_weights(&case.spec, &case.weights)
}

pub(crate) fn trail(store: &Store, case: &Case, session: &Session) -> Trail {
    store.trail(&digest(case), session).unwrap()
}

/// Takes in `ids`, giving the store a chance after each chunk, as an engine does.
pub(crate) fn prefill(session: &mut Session, trail: &mut Trail, ids: &[u32]) -> Kept {
    let mut between = |session: &mut Session, _| {
        trail.checkpoint(session).unwrap();
        ControlFlow::Continue(())
    };
    session.prefill_with(ids, &mut between).unwrap();
    trail.finish(session).unwrap()
}

pub(crate) fn restore(session: &mut Session, trail: &mut Trail, ids: &[u32]) -> usize {
    trail.restore(session, ids, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Stores the case's whole text in `dir`; tokens stored.
pub(crate) fn fill(dir: &Path, case: &Case) -> usize {
    let store = Store::open(dir, &options(case)).unwrap();
    let mut session = plain(case);
    let mut trail = trail(&store, case, &session);
    let kept = prefill(&mut session, &mut trail, &case.ids);
    assert_eq!((kept.stored, kept.behind), (case.ids.len() / case.chunk * case.chunk, 0));
    assert_eq!(store.stats().warnings, 0);
    kept.stored
}

/// The rest of the case's text, three single steps, a rewind into the text and a step of two: all logits, bit by bit.
pub(crate) fn walk(session: &mut Session, case: &Case) -> Vec<u32> {
    let ids = &case.ids;
    let mut all = logits(session, &ids[session.tokens().len()..], 1);
    for id in [3, 1, 4] {
        all.extend_from_slice(session.step(&[id], 1).unwrap());
    }
    session.rewind(ids.len() - 20);
    all.extend_from_slice(session.step(&[2, 6], 2).unwrap());
    assert!(all.iter().all(|x| x.is_finite()), "something read what nothing wrote");
    all.into_iter().map(f32::to_bits).collect()
}

pub(crate) fn file_bytes(dir: &Path) -> u64 {
    files(dir).iter().map(|path| path.metadata().unwrap().len()).sum()
}

/// The stored intervals, sorted.
pub(crate) fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "kv")).collect();
    files.sort();
    files
}

pub(crate) fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    dir
}

/// Another text of the same model, which shares its first `shared` tokens.
fn other_text(case: &Case, shared: usize, seed: u64) -> Case {
    let mut draw = Draw(seed);
    let vocab = case.spec.vocab;
    let fresh = |(at, id): (usize, &u32)| if at < shared { *id } else { draw.below(vocab) as u32 };
    let mut ids: Vec<u32> = case.ids.iter().enumerate().map(fresh).collect();
    if shared < ids.len() {
        ids[shared] = (case.ids[shared] + 1) % vocab as u32;
    }
    Case { ids, spec: case.spec.clone(), weights: case.weights.clone(), chunk: case.chunk }
}

#[test]
fn what_one_placement_stored_any_other_restores_bit_for_bit() {
    let (mut draw, mut restored) = (Draw(21), 0);
    for case in cases() {
        let expected = walk(&mut plain(&case), &case);
        for _ in 0..2 {
            let dir = folder();
            let store = Store::open(dir.path(), &options(&case)).unwrap();
            let mut writer =
                open(&case.spec, &case.weights, &random_request(&case, &mut draw), &CpuOptions::default());
            let mut writes = trail(&store, &case, &writer);
            let kept = prefill(&mut writer, &mut writes, &case.ids);
            assert_eq!(kept.behind, 0);
            for _ in 0..3 {
                let request = random_request(&case, &mut draw);
                let mut session = open(&case.spec, &case.weights, &request, &CpuOptions::default());
                let mut reads = trail(&store, &case, &session);
                let tokens = restore(&mut session, &mut reads, &case.ids);
                assert_eq!(tokens, (case.ids.len() - 1) / case.chunk * case.chunk);
                assert_eq!((tokens, tokens), (session.tokens().len(), session.clean()));
                assert!(walk(&mut session, &case) == expected, "{:?}", session.plan().knobs());
                restored += 1;
            }
            assert_eq!(store.stats().warnings, 0);
        }
    }
    assert!(restored >= 60);
}

#[test]
fn texts_that_begin_alike_share_files_and_each_is_written_once() {
    let case = &cases()[0];
    let dir = folder();
    let intervals = fill(dir.path(), case) / case.chunk;
    assert!(intervals >= 3, "the case is too short to say anything");
    let shared = (intervals - 1) * case.chunk + 1;
    let branch = other_text(case, shared, 5);
    let store = Store::open(dir.path(), &options(case)).unwrap();
    let mut session = plain(case);
    let mut trail = trail(&store, &branch, &session);
    assert_eq!(trail.available(&branch.ids), shared - 1);
    assert_eq!(restore(&mut session, &mut trail, &branch.ids), shared - 1);
    let rest = &branch.ids[shared - 1..];
    assert_eq!(prefill(&mut session, &mut trail, rest).behind, 0);
    assert_eq!(store.stats().written_files, 1, "only what differs is new");
    // The session turns to the first text: what it shares stays, the file brings the rest.
    assert_eq!(restore(&mut session, &mut trail, &case.ids), (case.ids.len() - 1) / case.chunk * case.chunk);
    assert!(walk(&mut session, case) == walk(&mut plain(case), case));
    assert_eq!(files(dir.path()).len(), intervals + 1);
}

#[test]
fn the_last_token_is_never_restored_for_its_logits_are_needed() {
    let case = &cases()[0];
    let dir = folder();
    fill(dir.path(), case);
    let store = Store::open(dir.path(), &options(case)).unwrap();
    for (len, want) in [(2 * case.chunk, case.chunk), (2 * case.chunk + 1, 2 * case.chunk), (1, 0), (0, 0)] {
        let mut session = plain(case);
        let mut trail = trail(&store, case, &session);
        assert_eq!(restore(&mut session, &mut trail, &case.ids[..len]), want, "{len} ids");
    }
}

#[test]
fn another_model_chunk_or_interval_restores_nothing() {
    let case = cases().remove(0);
    let dir = folder();
    fill(dir.path(), &case);
    let store = Store::open(dir.path(), &options(&case)).unwrap();
    let mut session = plain(&case);
    let law = ModelDigest::of_law(&case.spec, "random", 7);
    let mut other_model = store.trail(&law, &session).unwrap();
    assert_eq!(restore(&mut session, &mut other_model, &case.ids), 0);
    let wide = StoreOptions { interval_min: case.chunk + 1, ..StoreOptions::default() };
    let wide = Store::open(dir.path(), &wide).unwrap();
    let mut other_interval = trail(&wide, &case, &session);
    assert_eq!(other_interval.interval(), 2 * case.chunk);
    assert_eq!(restore(&mut session, &mut other_interval, &case.ids), 0);
    let case = Case { chunk: case.chunk + 1, ..case };
    let mut session = plain(&case);
    let mut other_chunk = trail(&store, &case, &session);
    assert_eq!(restore(&mut session, &mut other_chunk, &case.ids), 0);
    assert_eq!(store.stats().warnings + wide.stats().warnings, 0, "a miss is no trouble");
}

#[test]
fn rows_of_short_steps_are_not_stored() {
    let case = &cases()[0];
    let dir = folder();
    let store = Store::open(dir.path(), &options(case)).unwrap();
    let mut session = plain(case);
    let mut trail = trail(&store, case, &session);
    for ids in case.ids[..3 * case.chunk].chunks(case.chunk - 1) {
        session.step(ids, 0).unwrap();
    }
    assert_eq!((session.clean(), trail.finish(&mut session).unwrap()), (0, Kept::default()));
    session.rewind(0);
    session.step(&case.ids[..case.chunk], 0).unwrap();
    session.step(&case.ids[case.chunk..][..5], 0).unwrap();
    session.step(&case.ids[..case.chunk], 0).unwrap();
    assert_eq!(session.clean(), case.chunk);
    session.rewind(case.chunk - 1);
    assert_eq!(session.clean(), 0);
}

#[test]
fn the_limit_holds_and_the_least_recently_used_goes_first() {
    let case = &cases()[0];
    let one = {
        let dir = folder();
        fill(dir.path(), case);
        file_bytes(dir.path())
    };
    let dir = folder();
    let limit = StoreOptions { bytes_max: 3 * one + one / 2, ..options(case) };
    let store = Store::open(dir.path(), &limit).unwrap();
    let texts: Vec<Case> = (0..6).map(|seed| other_text(case, 0, 100 + seed)).collect();
    let mut session = plain(case);
    let mut used = trail(&store, case, &session);
    for text in &texts {
        session.rewind(0);
        let mut trail = trail(&store, case, &session);
        assert_eq!(prefill(&mut session, &mut trail, &text.ids).behind, 0);
        assert!(file_bytes(dir.path()) <= limit.bytes_max);
        drop(trail);
        // The first text is asked for again and again.
        session.rewind(0);
        assert!(restore(&mut session, &mut used, &texts[0].ids) > 0);
        used.release();
    }
    let whole = (case.ids.len() - 1) / case.chunk * case.chunk;
    let mut found = texts.iter().map(|text| used.available(&text.ids));
    assert_eq!((found.next(), found.next(), found.next()), (Some(whole), Some(0), Some(0)));
    assert_eq!(found.next_back(), Some(whole));
    assert_eq!(store.stats().warnings, 0);
}

#[test]
fn what_a_session_uses_is_not_deleted_by_any_store() {
    let case = &cases()[0];
    let dir = folder();
    let bytes = {
        fill(dir.path(), case);
        file_bytes(dir.path())
    };
    let limit = StoreOptions { bytes_max: bytes + bytes / 2, ..options(case) };
    let (ours, theirs) = (Store::open(dir.path(), &limit).unwrap(), Store::open(dir.path(), &limit).unwrap());
    let mut session = plain(case);
    let mut lease = trail(&ours, case, &session);
    let whole = restore(&mut session, &mut lease, &case.ids);
    let text = other_text(case, 0, 9);
    let mut other = plain(case);
    let mut crowd = trail(&theirs, case, &other);
    let kept = prefill(&mut other, &mut crowd, &text.ids);
    assert!(kept.behind > 0 && kept.stored > 0, "{kept:?}: the rest of the limit is used, and no more");
    assert_eq!(theirs.stats().warnings, 1);
    assert_eq!(lease.available(&case.ids), whole);
    drop(lease);
    // Chances are let pass after a refusal, then it is tried again.
    let kept = (0..200).map(|_| crowd.finish(&mut other).unwrap()).find(|kept| kept.behind == 0);
    assert!(kept.is_some() && file_bytes(dir.path()) <= limit.bytes_max);
    assert_eq!(theirs.stats().warnings, 1);
}

#[test]
fn what_a_trail_turns_away_from_makes_room_for_what_it_follows_next() {
    let case = &cases()[0];
    let dir = folder();
    let bytes = {
        let dir = folder();
        fill(dir.path(), case);
        file_bytes(dir.path())
    };
    let limit = StoreOptions { bytes_max: bytes + bytes / 2, ..options(case) };
    let store = Store::open(dir.path(), &limit).unwrap();
    let mut session = plain(case);
    let mut trail = trail(&store, case, &session);
    for text in [case, &other_text(case, 0, 5), &other_text(case, 0, 6)] {
        session.rewind(0);
        let kept = prefill(&mut session, &mut trail, &text.ids);
        assert_eq!((kept.behind, kept.refused, store.stats().warnings), (0, false, 0));
    }
    assert!(store.stats().folder_bytes <= limit.bytes_max);
    assert_eq!(store.stats().folder_bytes, file_bytes(dir.path()));
}

#[test]
fn a_text_that_was_released_is_looked_for_again() {
    let case = &cases()[0];
    let dir = folder();
    let store = Store::open(dir.path(), &options(case)).unwrap();
    let mut session = plain(case);
    let mut trail = trail(&store, case, &session);
    let kept = prefill(&mut session, &mut trail, &case.ids);
    let written = store.stats().written_files;
    trail.release();
    assert_eq!((trail.finish(&mut session).unwrap(), store.stats().written_files), (kept, written));
    trail.release();
    std::fs::remove_file(&files(dir.path())[0]).unwrap();
    assert_eq!((trail.finish(&mut session).unwrap(), store.stats().written_files), (kept, written + 1));
}

#[test]
fn whoever_waits_for_the_disk_is_told_and_its_memory_is_known_before() {
    let case = &cases()[0];
    let dir = folder();
    let store = Store::open(dir.path(), &options(case)).unwrap();
    let told = Arc::new(AtomicU64::new(0));
    let counts = told.clone();
    store.on_change(move || {
        counts.fetch_add(1, Ordering::SeqCst);
    });
    let mut session = plain(case);
    let mut trail = trail(&store, case, &session);
    assert!(!trail.must_wait(&session, &case.ids));
    prefill(&mut session, &mut trail, &case.ids);
    let most = buffer_bytes(&case.spec, case.chunk, &options(case));
    assert_eq!(most, Some(trail.memory_bytes()));
    assert!((1..=trail.memory_bytes()).contains(&store.stats().buffer_bytes));
    let written = store.stats().written_files;
    // The last is told of when its file is there already: dropping the store waits for its thread.
    drop((trail, store));
    assert_eq!(told.load(Ordering::SeqCst), written);
}

#[test]
fn however_files_are_read_the_bits_and_the_memory_are_the_same() {
    let case = &cases()[0];
    let expected = walk(&mut plain(case), case);
    let dir = folder();
    fill(dir.path(), case);
    let stats = [Reads::Auto, Reads::Threads].map(|reads| {
        let store = Store::open(dir.path(), &StoreOptions { reads, ..options(case) }).unwrap();
        let mut session = plain(case);
        let mut trail = trail(&store, case, &session);
        let tokens = restore(&mut session, &mut trail, &case.ids);
        assert_eq!(tokens, (case.ids.len() - 1) / case.chunk * case.chunk);
        assert!(walk(&mut session, case) == expected, "{reads:?}");
        assert!(store.stats().buffer_bytes <= trail.memory_bytes());
        store.stats()
    });
    assert_eq!(stats[0], stats[1]);
    assert!(stats[0].read_bytes > 0 && stats[0].warnings == 0);
}

#[test]
fn two_writers_at_once_do_each_other_no_harm() {
    let case = &cases()[0];
    let dir = folder();
    let texts: Vec<Case> = [0, 0, 1, 2].map(|seed| other_text(case, case.chunk, seed)).into_iter().collect();
    std::thread::scope(|scope| {
        for text in &texts {
            let store = Store::open(dir.path(), &options(case)).unwrap();
            scope.spawn(move || {
                let mut session = plain(text);
                let mut trail = trail(&store, text, &session);
                assert_eq!(prefill(&mut session, &mut trail, &text.ids).behind, 0);
                assert_eq!(store.stats().warnings, 0);
            });
        }
    });
    let store = Store::open(dir.path(), &options(case)).unwrap();
    for text in &texts {
        let mut session = plain(text);
        let mut trail = trail(&store, text, &session);
        assert_eq!(
            restore(&mut session, &mut trail, &text.ids),
            (text.ids.len() - 1) / text.chunk * text.chunk
        );
        assert!(walk(&mut session, text) == walk(&mut plain(text), text));
    }
    let names = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name());
    let partial = names.filter(|name| name.to_string_lossy().contains("partial")).count();
    assert_eq!((partial, store.stats().warnings), (0, 0));
}

#[test]
fn files_are_for_their_owner_alone() {
    let case = &cases()[0];
    let dir = folder();
    let made = dir.path().join("a/b");
    fill(&made, case);
    assert_eq!(made.metadata().unwrap().mode() & 0o777, 0o700);
    for entry in std::fs::read_dir(&made).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
    }
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(Store::open(&made, &options(case)), Err(StoreError::Shared { .. })));
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(matches!(Store::open(&file, &options(case)), Err(StoreError::Folder { .. })));
}

#[test]
fn a_store_too_small_for_one_interval_is_refused() {
    let case = &cases()[0];
    let dir = folder();
    let store = Store::open(dir.path(), &StoreOptions { bytes_max: 4096, ..options(case) }).unwrap();
    let refused = store.trail(&digest(case), &plain(case)).unwrap_err();
    assert!(matches!(refused, StoreError::TooSmall { tokens, .. } if tokens == case.chunk), "{refused}");
}

#[test]
fn the_digest_of_files_is_kept_and_a_damaged_note_is_not_believed() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let model =
        std::fs::read_dir(model).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).min().unwrap();
    let spec = load_config(&model).unwrap();
    let weights = Arc::new(Weights::load(&model, &spec).unwrap());
    let dir = folder();
    let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
    let digest = ModelDigest::of_weights(&spec, &weights);
    assert_eq!(store.digest(&spec, &weights), digest);
    let note = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
    let note = note.into_iter().find(|path| path.extension().is_some_and(|e| e == "digest")).unwrap();
    assert_eq!(store.digest(&spec, &weights), digest);
    let mut bytes = std::fs::read(&note).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&note, &bytes).unwrap();
    assert_eq!(store.digest(&spec, &weights), digest);
    assert_ne!(std::fs::read(&note).unwrap(), bytes, "the note was written anew");
}

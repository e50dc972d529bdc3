//! Store files that are damaged, cut, swapped, of others: they cost their tokens and one warning, and never an answer.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use headinfer_core::engine::Session;
use headinfer_core::model::ModelDigest;

use crate::house::{Setup, start};
use crate::model::{self, CHUNK, text};
use crate::restart::end;
use crate::reuse::ask;
use crate::store::{chunks, folder, kept, open};

const ROUNDS: usize = 200;
const WHOLE: usize = 6;

/// A fixed sequence of numbers, by xorshift.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// Stored intervals in `dir`, each after the one that it continues.
fn in_order(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut left: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "kv")).collect();
    let halves = |path: &PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        name.split_once('-').map(|(parent, key)| (parent.to_owned(), key.to_owned())).unwrap()
    };
    let keys: BTreeSet<String> = left.iter().map(|path| halves(path).1).collect();
    let mut next = left.iter().position(|path| !keys.contains(&halves(path).0));
    let mut order = Vec::new();
    while let Some(at) = next {
        order.push(left.swap_remove(at));
        let key = halves(&order[order.len() - 1]).1;
        next = left.iter().position(|path| halves(path).0 == key);
    }
    order
}

/// Harms one of `files`; the number of the first interval that is harmed, and how.
fn damage(draw: &mut Draw, files: &[PathBuf], foreign: &[PathBuf]) -> (usize, &'static str) {
    let at = draw.below(files.len());
    let path = &files[at];
    let bytes = fs::read(path).unwrap();
    let patch = |offset: usize, patch: &[u8]| {
        fs::File::options().write(true).open(path).unwrap().write_all_at(patch, offset as u64).unwrap();
    };
    let what = match draw.below(11) {
        0..4 => {
            let offset = draw.below(bytes.len());
            patch(offset, &[bytes[offset] ^ 1 << draw.below(8)]);
            "a bit flips"
        }
        4 | 5 => {
            fs::write(path, &bytes[..draw.below(bytes.len())]).unwrap();
            "cut"
        }
        6 => {
            let start = draw.below(bytes.len() / 4096) * 4096;
            patch(start, &vec![0; bytes.len() - start]);
            "zeros to the end"
        }
        7 => {
            let other = (at + 1 + draw.below(files.len() - 1)) % files.len();
            fs::copy(&files[other], path).unwrap();
            fs::write(&files[other], &bytes).unwrap();
            return (at.min(other), "two swap");
        }
        8 => {
            fs::copy(&foreign[0], path).unwrap();
            "of another model"
        }
        9 => {
            fs::copy(&foreign[1], path).unwrap();
            "of another text"
        }
        _ => {
            patch(20 + 4 * draw.below(5), &[0xff; 4]);
            "huge counts"
        }
    };
    if fs::read(path).unwrap() == bytes { (files.len(), "nothing") } else { (at, what) }
}

/// The first interval of `prompt` as the model called `digest` stores it in `dir`.
fn foreign(dir: &Path, digest: &ModelDigest, prompt: &str) -> PathBuf {
    let plan = model::plan(1024);
    let mut session = Session::new(plan.clone(), Box::new(model::backend(&plan)));
    let ids = model::tokenizer().encode(prompt).unwrap();
    session.step(&ids[..CHUNK], 0).unwrap();
    open(dir).trail(digest, &session).unwrap().finish(&mut session).unwrap();
    in_order(dir).remove(0)
}

#[tokio::test]
async fn two_hundred_damaged_stores_give_no_wrong_answer() {
    let (sound, of_model, of_text) = (folder(), folder(), folder());
    let book = format!("{} So?", text(1, WHOLE * CHUNK));
    let house = kept(sound.path(), 1).await;
    let fresh = ask(&house, &book).await;
    end(house).await;
    let alone = start(Setup { slots: 1, ..Setup::default() }).await;
    assert_eq!(ask(&alone, &book).await, fresh);
    let order = in_order(sound.path());
    assert_eq!(order.len(), WHOLE);
    let another = ModelDigest::of_law(&model::spec(), "another", 1);
    let theirs = [
        foreign(of_model.path(), &another, &book),
        foreign(of_text.path(), &model::digest(), &text(2, CHUNK)),
    ];
    let (mut draw, mut kinds, mut warned) = (Draw(0x51ab_77c3), BTreeSet::new(), 0);
    for round in 0..ROUNDS {
        let dir = folder();
        let copies: Vec<PathBuf> =
            order.iter().map(|from| dir.path().join(from.file_name().unwrap())).collect();
        for (from, to) in order.iter().zip(&copies) {
            fs::copy(from, to).unwrap();
        }
        let (first, what) = damage(&mut draw, &copies, &theirs);
        kinds.insert(what);
        let house = kept(dir.path(), 1).await;
        let (words, logprobs, cached) = ask(&house, &book).await;
        assert_eq!((&words, &logprobs), (&fresh.0, &fresh.1), "round {round}: {what}");
        assert_eq!(cached, chunks(first.min(WHOLE)), "round {round}: {what}");
        let warnings = house.metric("store_warnings_total").await;
        assert_eq!(warnings, f64::from(u8::from(first < WHOLE)), "round {round}: {what}");
        warned += usize::from(first < WHOLE);
        end(house).await;
        let first = first % WHOLE;
        let same = fs::read(&copies[first]).unwrap() == fs::read(&order[first]).unwrap();
        assert!(same, "round {round}: what was damaged is written anew: {what}");
    }
    assert!(kinds.len() >= 7 && warned > ROUNDS * 9 / 10, "{kinds:?}, {warned}");
}

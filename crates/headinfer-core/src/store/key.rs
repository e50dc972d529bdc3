//! What a stored interval of tokens is called: a chain of hashes over the ids, from a root that holds all else its
//! bits depend on.

use std::fmt;

use crate::backend::NUMERICS;
use crate::model::ModelDigest;
use crate::plan::Plan;

/// 256 bits that stand for a sequence of tokens taken in by one model, in one way.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(pub(super) [u8; 32]);

impl Key {
    /// The key of no tokens: model, arithmetic, rows of the products, interval. `numerics` names the backend's.
    pub(super) fn root(model: &ModelDigest, numerics: &str, plan: &Plan, interval: usize) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("headinfer session store, root 1");
        hasher.update(model.as_bytes());
        let k = plan.knobs();
        for number in [NUMERICS as usize, k.chunk, k.mlp_rows, interval, numerics.len()] {
            hasher.update(&(number as u64).to_le_bytes());
        }
        hasher.update(numerics.as_bytes()).update(env!("CARGO_PKG_VERSION").as_bytes());
        if let Some(lossy) = plan.lossy() {
            hasher.update(lossy.as_bytes());
        }
        Self(hasher.finalize().into())
    }

    /// The key of these tokens and `ids` after them.
    pub(super) fn then(self, ids: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("headinfer session store, chain 1");
        hasher.update(&self.0);
        ids.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
        Self(hasher.finalize().into())
    }
}

/// The first half, which is what file names hold.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..16].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a text is what [`Key`] displays.
pub(super) fn is_short_key(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The keys of a sequence of tokens, one to each whole interval.
#[derive(Debug)]
pub(super) struct Chain {
    interval: usize,
    ids: Vec<u32>,
    /// The root, then one per interval.
    keys: Vec<Key>,
}

impl Chain {
    pub(super) fn new(root: Key, interval: usize) -> Self {
        Self { interval, ids: Vec::new(), keys: vec![root] }
    }

    /// Makes it the chain of the whole intervals of `ids`; how many of its intervals it keeps.
    pub(super) fn follow(&mut self, ids: &[u32]) -> usize {
        let shared = self.ids.iter().zip(ids).take_while(|(a, b)| a == b).count() / self.interval;
        self.keys.truncate(shared + 1);
        self.ids.truncate(shared * self.interval);
        for ids in ids[self.ids.len()..].chunks_exact(self.interval) {
            self.keys.push(self.keys[self.keys.len() - 1].then(ids));
            self.ids.extend_from_slice(ids);
        }
        shared
    }

    /// What the whole intervals of `ids` are stored as under the same root, each hashed when it is asked for.
    pub(super) fn links_of<'a>(&self, ids: &'a [u32]) -> impl Iterator<Item = Link> + use<'a> {
        let root = self.keys[0];
        ids.chunks_exact(self.interval).enumerate().scan(root, move |parent, (index, ids)| {
            let key = parent.then(ids);
            Some(Link { root, parent: std::mem::replace(parent, key), key, index: index as u64 })
        })
    }

    /// Whole intervals.
    pub(super) fn len(&self) -> usize {
        self.keys.len() - 1
    }

    /// What interval `index` is stored as.
    pub(super) fn link(&self, index: usize) -> Link {
        let (root, parent, key) = (self.keys[0], self.keys[index], self.keys[index + 1]);
        Link { root, parent, key, index: index as u64 }
    }

    /// The tokens of interval `index`.
    pub(super) fn ids(&self, index: usize) -> &[u32] {
        &self.ids[index * self.interval..][..self.interval]
    }
}

/// One interval's place in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Of the chain.
    pub root: Key,
    /// All tokens before the interval.
    pub parent: Key,
    /// Those and the interval's own.
    pub key: Key,
    /// Intervals before.
    pub index: u64,
}

impl Link {
    /// The name of its file: from names alone it can be seen what continues what.
    pub fn file_name(&self) -> String {
        format!("{}-{}.kv", self.parent, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_kept_as_far_as_it_is_shared() {
        let ids: Vec<u32> = (0..35).collect();
        let mut chain = Chain::new(Key([7; 32]), 10);
        assert_eq!((chain.follow(&ids), chain.len()), (0, 3));
        let keys = chain.keys.clone();
        let mut other = ids.clone();
        other[25] = 99;
        assert_eq!((chain.follow(&other), chain.len()), (2, 3));
        assert_eq!(chain.keys[..3], keys[..3]);
        assert_ne!(chain.keys[3], keys[3]);
        assert_eq!(chain.ids(2)[5], 99);
        assert_eq!((chain.follow(&ids[..9]), chain.len()), (0, 0));
        assert_eq!((chain.follow(&ids), chain.len()), (0, 3));
        assert_eq!(chain.keys, keys);
    }

    #[test]
    fn names_are_read_back() {
        let link = Link { root: Key([1; 32]), parent: Key([0xab; 32]), key: Key([3; 32]), index: 4 };
        let name = link.file_name();
        let (parent, key) = name.strip_suffix(".kv").unwrap().split_once('-').unwrap();
        assert!(is_short_key(parent) && is_short_key(key));
        assert!(!is_short_key(&key[1..]) && !is_short_key(&key.replace('0', "G")));
    }
}

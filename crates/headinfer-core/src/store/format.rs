//! The bytes of a stored interval: a head that says whose KV it is, and the KV in its canonical form.
//!
//! ```text
//! 0     magic, version u32, layers u32, kv_heads u32, head_dim u32, tokens u64, index u64, zeros
//! 64    root, parent and key of the chain, 32 bytes each
//! 160   checksum of the head: all up to the data but itself
//! 192   ids u32 [tokens], checksums 32 bytes [layers][kv_heads], zeros up to a multiple of 4096
//!       data bf16 [layers][kv_heads][K | V][tokens, head_dim], zeros up to a multiple of 4096
//! ```
//!
//! Little-endian; checksums are BLAKE3. Nothing here trusts a byte: a file is read whole, its length must be what
//! its shape says, and its shape within limits. Must not know files or sessions.

use rayon::prelude::*;
use thiserror::Error;

use super::key::{Key, Link};
use crate::model::spec::ModelSpec;

/// Parts of a file, and files, are multiples of this many bytes: what direct I/O asks for.
pub const ALIGN: usize = 4096;
const MAGIC: [u8; 16] = *b"headinfer kv \0\r\n";
const VERSION: u32 = 1;
const KEYS_AT: usize = 64;
const SUM_AT: usize = 160;
const IDS_AT: usize = 192;
/// Layers, heads and their size are at most this.
const COUNT_MAX: usize = 1 << 16;
/// Bytes of a file are at most this.
const BYTES_MAX: u128 = 1 << 46;

/// Why bytes are not a stored interval.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Problem {
    /// Too short to say what it is, or of another kind.
    #[error("it is no file of the session store")]
    Foreign,
    /// From another build.
    #[error("its format is version {0}, this build reads {VERSION}")]
    Version(u32),
    /// Counts of zero or beyond all limits.
    #[error("its shape is impossible")]
    Shape,
    /// Cut, or longer than it says.
    #[error("it has {have} bytes, its shape needs {want}")]
    Length {
        /// Bytes there.
        have: u64,
        /// Bytes that its shape makes.
        want: u64,
    },
    /// A bit of the head flipped.
    #[error("its head is damaged")]
    Head,
    /// A bit of the data flipped.
    #[error("the KV of layer {layer}, head {head} is damaged")]
    Tile {
        /// Which layer.
        layer: usize,
        /// Which KV head.
        head: usize,
    },
    /// Sound, but not what its name says.
    #[error("it belongs to other tokens or another model")]
    Another,
}

/// What one file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    tokens: usize,
}

impl Shape {
    /// `None` when a count is zero or beyond the limits.
    pub fn new(layers: usize, kv_heads: usize, head_dim: usize, tokens: usize) -> Option<Self> {
        let counts = [layers, kv_heads, head_dim];
        let shape = Self { layers, kv_heads, head_dim, tokens };
        let wide = |n: usize| n as u128;
        let data = counts.iter().map(|n| wide(*n)).product::<u128>().checked_mul(wide(tokens))? * 4;
        let fits = counts.iter().all(|n| (1..=COUNT_MAX).contains(n)) && tokens > 0 && data <= BYTES_MAX;
        (fits && wide(shape.tiles()) * 32 <= BYTES_MAX).then_some(shape)
    }

    /// Of `tokens` tokens of a model.
    pub(super) fn of(spec: &ModelSpec, tokens: usize) -> Option<Self> {
        Self::new(spec.layers, spec.kv_heads, spec.head_dim, tokens)
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> usize {
        self.data_at() + self.data_bytes().next_multiple_of(ALIGN)
    }

    fn tiles(&self) -> usize {
        self.layers * self.kv_heads
    }

    fn tile_bytes(&self) -> usize {
        4 * self.tokens * self.head_dim
    }

    fn data_bytes(&self) -> usize {
        self.tiles() * self.tile_bytes()
    }

    fn sums_at(&self) -> usize {
        IDS_AT + 4 * self.tokens
    }

    fn data_at(&self) -> usize {
        (self.sums_at() + 32 * self.tiles()).next_multiple_of(ALIGN)
    }

    /// The part of a file's bytes that the KV goes to.
    pub(super) fn data_mut<'a>(&self, file: &'a mut [u8]) -> &'a mut [u8] {
        &mut file[self.data_at()..][..self.data_bytes()]
    }
}

/// A file that was found sound.
#[derive(Debug)]
pub struct Contents<'a> {
    /// Its shape.
    pub shape: Shape,
    /// Its place in a chain.
    pub link: Link,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// K and V, bf16 `[layers][kv_heads][K | V][tokens, head_dim]`.
    pub kv: &'a [u8],
}

/// Writes all but the data into `file`, whose data is already there.
///
/// # Panics
/// When `file` or `ids` have not the length of `shape`.
pub fn seal(file: &mut [u8], shape: &Shape, link: &Link, ids: &[u32]) {
    assert!(file.len() == shape.file_bytes() && ids.len() == shape.tokens, "a file has its shape's length");
    let (head, data) = file.split_at_mut(shape.data_at());
    data[shape.data_bytes()..].fill(0);
    head.fill(0);
    head[..16].copy_from_slice(&MAGIC);
    let counts = [VERSION, shape.layers as u32, shape.kv_heads as u32, shape.head_dim as u32];
    put(head, 16, counts.iter().flat_map(|n| n.to_le_bytes()));
    put(head, 32, [shape.tokens as u64, link.index].iter().flat_map(|n| n.to_le_bytes()));
    put(head, KEYS_AT, [link.root, link.parent, link.key].iter().flat_map(|key| key.0));
    put(head, IDS_AT, ids.iter().flat_map(|id| id.to_le_bytes()));
    let tiles = data[..shape.data_bytes()].chunks_exact(shape.tile_bytes());
    put(head, shape.sums_at(), tiles.flat_map(|tile| *blake3::hash(tile).as_bytes()));
    let sum = head_sum(head);
    put(head, SUM_AT, sum.iter().copied());
}

/// Reads a whole file, believing nothing: every checksum is compared, with all threads.
///
/// # Errors
/// [`Problem`].
pub fn open(file: &[u8]) -> Result<Contents<'_>, Problem> {
    if file.len() < IDS_AT || file[..16] != MAGIC {
        return Err(Problem::Foreign);
    }
    let half = |at: usize| u32::from_le_bytes([file[at], file[at + 1], file[at + 2], file[at + 3]]);
    let whole = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
    if half(16) != VERSION {
        return Err(Problem::Version(half(16)));
    }
    let tokens = usize::try_from(whole(32)).map_err(|_| Problem::Shape)?;
    let shape = Shape::new(half(20) as usize, half(24) as usize, half(28) as usize, tokens);
    let shape = shape.ok_or(Problem::Shape)?;
    if file.len() != shape.file_bytes() {
        return Err(Problem::Length { have: file.len() as u64, want: shape.file_bytes() as u64 });
    }
    let (head, data) = file.split_at(shape.data_at());
    let (kv, padding) = data.split_at(shape.data_bytes());
    if head[SUM_AT..IDS_AT] != head_sum(head) || padding.iter().any(|byte| *byte != 0) {
        return Err(Problem::Head);
    }
    let sums = head[shape.sums_at()..].par_chunks_exact(32);
    let tiles = kv.par_chunks_exact(shape.tile_bytes());
    let bad = tiles.zip(sums).position_any(|(tile, sum)| blake3::hash(tile).as_bytes() != sum);
    if let Some(tile) = bad {
        return Err(Problem::Tile { layer: tile / shape.kv_heads, head: tile % shape.kv_heads });
    }
    let key = |n: usize| {
        let mut key = [0; 32];
        key.copy_from_slice(&head[KEYS_AT + 32 * n..][..32]);
        Key(key)
    };
    let link = Link { root: key(0), parent: key(1), key: key(2), index: whole(40) };
    let ids = (0..tokens).map(|i| half(IDS_AT + 4 * i)).collect();
    Ok(Contents { shape, link, ids, kv })
}

/// Of everything in the head but the checksum's own place.
fn head_sum(head: &[u8]) -> [u8; 32] {
    blake3::Hasher::new().update(&head[..SUM_AT]).update(&head[IDS_AT..]).finalize().into()
}

fn put(to: &mut [u8], at: usize, bytes: impl Iterator<Item = u8>) {
    to[at..].iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(layers: usize, kv_heads: usize, head_dim: usize, tokens: usize) -> Vec<u8> {
        let shape = Shape::new(layers, kv_heads, head_dim, tokens).unwrap();
        let mut file = vec![0xee; shape.file_bytes()];
        shape
            .data_mut(&mut file)
            .iter_mut()
            .enumerate()
            .for_each(|(i, byte)| *byte = (i * 7 + i / 251) as u8);
        let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 77_777).collect();
        let link = Link { root: Key([1; 32]), parent: Key([2; 32]), key: Key([3; 32]), index: 9 };
        seal(&mut file, &shape, &link, &ids);
        file
    }

    #[test]
    fn impossible_shapes_are_refused() {
        assert!(Shape::new(0, 1, 1, 1).is_none() && Shape::new(1, 1, 1, 0).is_none());
        assert!(Shape::new(COUNT_MAX + 1, 1, 1, 1).is_none());
        assert!(Shape::new(COUNT_MAX, COUNT_MAX, COUNT_MAX, usize::MAX).is_none());
        assert!(Shape::new(32, 8, 128, 65_536).is_some());
    }

    #[test]
    fn other_kinds_and_versions_are_told_apart() {
        let mut file = sample(1, 1, 8, 4);
        file[16] = 2;
        assert_eq!(open(&file).unwrap_err(), Problem::Version(2));
        file[3] ^= 1;
        assert_eq!(open(&file).unwrap_err(), Problem::Foreign);
        assert_eq!(open(&file[..100]).unwrap_err(), Problem::Foreign);
    }

    #[test]
    fn a_flipped_bit_of_data_names_its_head() {
        let mut file = sample(3, 2, 16, 32);
        let shape = Shape::new(3, 2, 16, 32).unwrap();
        file[shape.data_at() + 3 * shape.tile_bytes()] ^= 0x10;
        assert_eq!(open(&file).unwrap_err(), Problem::Tile { layer: 1, head: 1 });
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_read(layers in 1usize..4, heads in 1usize..4, dim in 1usize..20, tokens in 1usize..50) {
            let file = sample(layers, heads, dim, tokens);
            let contents = open(&file).unwrap();
            prop_assert_eq!(contents.shape, Shape::new(layers, heads, dim, tokens).unwrap());
            prop_assert_eq!(contents.link.index, 9);
            prop_assert_eq!(contents.link.key, Key([3; 32]));
            prop_assert_eq!(contents.ids.last().copied(), Some((tokens as u32 - 1) * 77_777));
            prop_assert!(contents.kv.iter().enumerate().all(|(i, byte)| *byte == (i * 7 + i / 251) as u8));
        }

        #[test]
        fn any_flipped_bit_and_any_other_length_is_seen(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut file = sample(2, 2, 8, 24);
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
            prop_assert!(open(&file).is_err());
            file[at] ^= 1 << bit;
            prop_assert!(open(&file).is_ok());
            prop_assert!(open(&file[..at]).is_err());
            file.push(0);
            prop_assert!(open(&file).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(mut file in prop::collection::vec(any::<u8>(), 0..6000), honest in 0usize..48) {
            let head = sample(1, 1, 4, 4);
            let honest = honest.min(file.len());
            file[..honest].copy_from_slice(&head[..honest]);
            prop_assert!(open(&file).is_err());
        }
    }
}

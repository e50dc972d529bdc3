//! Arenas: one mapping each, made once, and never grown.
//!
//! Lanes run on threads of their own and touch disjoint ranges of one arena. The borrow checker cannot see
//! that, so a [`Grant`] checks it at run time: a command takes all its ranges at once, and a range that
//! conflicts with one held by another lane is a broken schedule and panics. This is also the detector of
//! races that the hazard check of the plan is held against.
#![allow(unsafe_code)] // raw views of a mapping; soundness is the run-time check of `Memories::grant`

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;

use crate::plan::{Access, Memory, Operand, Operands, Role, Span};

/// One anonymous mapping of fixed size.
pub struct Arena {
    base: *mut u8,
    bytes: u64,
    // Owns the memory behind `base`; never touched through.
    _map: Option<MmapMut>,
}

// SAFETY: `base` is only dereferenced through a `Grant`, whose ranges were checked against every other
// live grant.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps `bytes` of zeroed memory, or of NaN patterns where `poison` asks for it (tests: whatever reads
    /// before anything wrote shows up in the logits).
    ///
    /// # Errors
    /// The operating system's, when it refuses the mapping.
    pub fn new(bytes: u64, poison: bool) -> io::Result<Self> {
        if bytes == 0 {
            return Ok(Self {
                base: std::ptr::NonNull::<u64>::dangling().as_ptr().cast(),
                bytes,
                _map: None,
            });
        }
        let mut map = MmapMut::map_anon(bytes as usize)?;
        // Large pages halve the cost of streaming gigabytes; a refusal only costs speed.
        let _ = map.advise(memmap2::Advice::HugePage);
        if poison {
            map.fill(0xff);
        }
        Ok(Self { base: map.as_mut_ptr(), bytes, _map: Some(map) })
    }

    /// Bytes mapped: what the plan asked for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The two arenas of the CPU backend and the ranges of them that are in use right now.
pub struct Memories {
    device: Arena,
    host: Arena,
    held: Mutex<Vec<Held>>,
    next_id: AtomicU64,
}

struct Held {
    grant: u64,
    span: Span,
    write: bool,
}

impl Memories {
    /// Puts two arenas under one guard.
    pub fn new(device: Arena, host: Arena) -> Self {
        Self { device, host, held: Mutex::new(Vec::new()), next_id: 0.into() }
    }

    /// The arena that plays `memory`.
    pub fn arena(&self, memory: Memory) -> &Arena {
        match memory {
            Memory::Device => &self.device,
            Memory::Host => &self.host,
        }
    }

    /// Borrows every range in `operands` until the grant is dropped.
    ///
    /// # Panics
    /// When a range leaves its arena, or conflicts with one held by another grant or with another range of
    /// the same grant: the schedule is wrong.
    pub fn grant(&self, operands: Operands) -> Grant<'_> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let list = operands.as_slice();
        let mut held = self.held();
        for (i, operand) in list.iter().enumerate() {
            let span = operand.span;
            let write = operand.access == Access::Write;
            assert!(
                span.offset.checked_add(span.bytes).is_some_and(|end| end <= self.arena(span.memory).bytes),
                "operand leaves its arena: {operand:?}"
            );
            if let Some(other) = held.iter().find(|h| h.span.overlaps(&span) && (h.write || write)) {
                panic!("two lanes touch the same bytes: {operand:?} while {:?} is held", other.span);
            }
            if write {
                let twice = list.iter().enumerate().any(|(j, o)| j != i && o.span.overlaps(&span));
                assert!(!twice, "an operand overlaps a written one: {operand:?}");
            }
        }
        held.extend(list.iter().map(|o| Held { grant: id, span: o.span, write: o.access == Access::Write }));
        drop(held);
        let taken = list.iter().map(|_| AtomicBool::new(false)).collect();
        Grant { memories: self, id, operands, taken }
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ranges one command may touch, for as long as it runs.
pub struct Grant<'a> {
    memories: &'a Memories,
    id: u64,
    operands: Operands,
    taken: Vec<AtomicBool>,
}

impl Grant<'_> {
    /// The `k`-th operand of `role` as readable elements.
    ///
    /// # Panics
    /// When the command declared no such operand, or it is being written.
    pub fn read<T: bytemuck::AnyBitPattern>(&self, role: Role, k: usize) -> &[T] {
        let (i, operand) = self.find(role, k);
        // A written operand may be read instead, but not besides.
        let taken = operand.access == Access::Write && self.taken[i].swap(true, Ordering::Relaxed);
        assert!(!taken, "{role:?} {k} is being written");
        // SAFETY: the range is inside the mapping, is held by this grant alone or shared for reading only,
        // was written by no one else while held, and lives as long as the grant. `cast_slice` checks
        // alignment and length.
        let bytes = unsafe { std::slice::from_raw_parts(self.pointer(operand), operand.span.bytes as usize) };
        bytemuck::cast_slice(bytes)
    }

    /// The `k`-th operand of `role` as writable elements; each can be taken once.
    ///
    /// # Panics
    /// When the command declared no such operand for writing, or it was taken before.
    #[allow(clippy::mut_from_ref)] // uniqueness is the `taken` flag and the check of `Memories::grant`
    pub fn write<T: bytemuck::Pod>(&self, role: Role, k: usize) -> &mut [T] {
        let (i, operand) = self.find(role, k);
        assert!(operand.access == Access::Write, "{role:?} {k} is not declared for writing");
        assert!(!self.taken[i].swap(true, Ordering::Relaxed), "{role:?} {k} is taken twice");
        // SAFETY: as in `read`; besides, `grant` saw that no other range overlaps a written one, and `taken`
        // that this one is handed out once.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(self.pointer(operand), operand.span.bytes as usize) };
        bytemuck::cast_slice_mut(bytes)
    }

    /// How many operands of `role` the command has.
    pub fn count(&self, role: Role) -> usize {
        self.operands.as_slice().iter().filter(|o| o.role == role).count()
    }

    fn find(&self, role: Role, k: usize) -> (usize, &Operand) {
        self.operands
            .as_slice()
            .iter()
            .enumerate()
            .filter(|(_, o)| o.role == role)
            .nth(k)
            .unwrap_or_else(|| panic!("the command declares no operand {role:?} {k}"))
    }

    fn pointer(&self, operand: &Operand) -> *mut u8 {
        let arena = self.memories.arena(operand.span.memory);
        // SAFETY: `grant` checked that offset + bytes stays inside the arena.
        unsafe { arena.base.add(operand.span.offset as usize) }
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        self.memories.held().retain(|h| h.grant != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memories() -> Memories {
        Memories::new(Arena::new(4096, false).unwrap(), Arena::new(4096, true).unwrap())
    }

    fn operands(list: &[(Role, Access, Memory, u64, u64)]) -> Operands {
        let mut out = Operands::default();
        for &(role, access, memory, offset, bytes) in list {
            out.push(role, access, Span { memory, offset, bytes });
        }
        out
    }

    #[test]
    fn what_one_grant_writes_the_next_reads() {
        let m = memories();
        let g = m.grant(operands(&[(Role::Hidden, Access::Write, Memory::Device, 64, 16)]));
        g.write::<f32>(Role::Hidden, 0).copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        drop(g);
        let g = m.grant(operands(&[(Role::Hidden, Access::Read, Memory::Device, 68, 8)]));
        assert_eq!(g.read::<f32>(Role::Hidden, 0), [2.0, 3.0]);
    }

    #[test]
    fn fresh_host_memory_is_poison_when_asked() {
        let m = memories();
        let g = m.grant(operands(&[(Role::Hidden, Access::Read, Memory::Host, 0, 4)]));
        assert!(g.read::<f32>(Role::Hidden, 0)[0].is_nan());
    }

    #[test]
    #[should_panic(expected = "two lanes touch the same bytes")]
    fn a_conflict_between_lanes_panics() {
        let m = memories();
        let _reader = m.grant(operands(&[(Role::Hidden, Access::Read, Memory::Device, 0, 64)]));
        let _writer = m.grant(operands(&[(Role::Hidden, Access::Write, Memory::Device, 60, 8)]));
    }

    #[test]
    #[should_panic(expected = "leaves its arena")]
    fn a_range_past_the_end_panics() {
        memories().grant(operands(&[(Role::Hidden, Access::Read, Memory::Device, 4092, 8)]));
    }

    #[test]
    fn readers_share() {
        let m = memories();
        let a = m.grant(operands(&[(Role::Hidden, Access::Read, Memory::Device, 0, 64)]));
        let b = m.grant(operands(&[(Role::Hidden, Access::Read, Memory::Device, 0, 64)]));
        assert_eq!(a.read::<u8>(Role::Hidden, 0), b.read::<u8>(Role::Hidden, 0));
    }
}

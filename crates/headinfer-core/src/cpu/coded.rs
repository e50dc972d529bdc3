//! A coded store on the CPU: units are coded and decoded, by the ops of a step and by what reads or writes rows between
//! steps. Must not know where anything lies: that is the operands' business.

use std::convert::Infallible;
use std::ops::Range;

use rayon::prelude::*;

use super::exec::Executor;
use super::units::{self, ReadHalves, UnitCodec, UnitMemory, WriteHalves};
use crate::backend::BackendError;
use crate::memory::Grant;
use crate::model::synthetic::{Half, SyntheticKv};
use crate::plan::{Access, Role, Step, UNIT};

impl Executor {
    /// The op `Pack`: `g` is its grant.
    pub(super) fn pack(&self, step: &Step, layer: usize, g: &Grant<'_>) {
        copy(g, [(Role::OwnKey, Role::KeyTo), (Role::OwnValue, Role::ValueTo)]);
        let units = self.plan.new_units(step);
        if units.is_empty() {
            return;
        }
        let (codec, d) = (self.codec(), self.plan.spec.head_dim);
        let counts = g.write::<u32>(Role::PlaneCounts, 0);
        if layer == 0 {
            // Heads live on the host in the first layer if they do in any.
            counts.fill(0);
        }
        let pieces: Vec<&mut [u8]> =
            (0..g.count(Role::Planes)).map(|piece| g.write::<u8>(Role::Planes, piece)).collect();
        let each = self.plane_bytes();
        let mut planes = pieces.into_iter().flat_map(|piece| piece.chunks_exact_mut(each.max(1)));
        let mut heads: Vec<_> = (0..g.count(Role::UnitsTo))
            .map(|head| {
                let rows =
                    [Role::Key, Role::Value].map(|role| g.read::<u16>(role, head).chunks_exact(UNIT * d));
                (rows, g.write::<u8>(Role::UnitsTo, head).chunks_exact_mut(codec.half_bytes()))
            })
            .collect();
        for (unit, taken) in units.zip(counts) {
            let halves = heads.iter_mut().flat_map(|(rows, to)| {
                let halves = rows.each_mut().map(|rows| rows.next().zip(to.next()));
                halves.into_iter().flatten()
            });
            if !codec.code(halves.collect(), planes.next().unwrap_or_default(), taken) {
                g.write::<u32>(Role::PackFault, 0)[0] = unit as u32 + 1;
                return;
            }
        }
    }

    /// The op `Unpack`: `g` is its grant.
    pub(super) fn unpack(&self, g: &Grant<'_>) {
        let (codec, d, each) = (self.codec(), self.plan.spec.head_dim, self.plane_bytes());
        let pieces = (0..g.count(Role::Planes)).map(|piece| g.read::<u8>(Role::Planes, piece));
        let planes: Vec<&[u8]> = pieces.flat_map(|piece| piece.chunks_exact(each.max(1))).collect();
        let mut halves = Vec::new();
        for head in 0..g.count(Role::Units) {
            let units = g.read::<u8>(Role::Units, head);
            for (which, (to, open)) in
                [(Role::KeyTo, Role::OpenKey), (Role::ValueTo, Role::OpenValue)].into_iter().enumerate()
            {
                let coded = units.chunks_exact(codec.half_bytes()).skip(which).step_by(2);
                let (rows, after) = g.write::<u16>(to, head).split_at_mut(coded.len() * UNIT * d);
                halves
                    .extend(coded.zip(rows.chunks_exact_mut(UNIT * d)).enumerate().map(|half| (which, half)));
                if !after.is_empty() {
                    after.copy_from_slice(g.read(open, head));
                }
            }
        }
        halves.into_par_iter().for_each(|(which, (unit, (half, rows)))| {
            codec.decode(which, half, planes.get(unit).copied().unwrap_or_default(), rows);
        });
    }

    /// Bytes of all planes of a unit.
    fn plane_bytes(&self) -> usize {
        self.plan.layout().planes(&self.plan.spec) * self.plan.knobs().kv.plane_bytes(self.plan.spec.head_dim)
    }

    /// K and V of `rows` of the `held` ones, of heads on the host, to their canonical form.
    pub(super) fn read_units(&self, rows: &Range<usize>, held: usize, to: &mut [u8]) {
        let Ok(()) = units::read_units(&self.codec(), (&self.plan, self), rows, held, to);
    }

    /// K and V of `rows` from their canonical form to units, and the rest to the open unit, of heads on the host.
    ///
    /// # Errors
    /// When a unit has no plane left.
    pub(super) fn write_units(&self, rows: &Range<usize>, from: &[u8]) -> Result<(), BackendError> {
        let Ok(full) = units::write_units(&self.codec(), (&self.plan, self), rows, from);
        full.map_or(Ok(()), |unit| Err(self.plan.no_plane(unit)))
    }

    fn codec(&self) -> UnitCodec {
        UnitCodec::new(self.isa, &self.plan)
    }

    /// A synthetic past, unit by unit, as [`Executor::write_rows`] takes it.
    ///
    /// # Errors
    /// As [`Executor::write_units`].
    pub(super) fn fill_units(&self, rows: usize, seed: u64) -> Result<(), BackendError> {
        let spec = &self.plan.spec;
        for first in (0..rows).step_by(UNIT) {
            let unit = first..rows.min(first + UNIT);
            let values = unit.len() * spec.head_dim;
            let mut kv = vec![0u16; 2 * spec.layers * spec.kv_heads * values];
            kv.par_chunks_exact_mut(values).enumerate().for_each(|(index, to)| {
                let half = [Half::Key, Half::Value][index % 2];
                SyntheticKv::new(seed, index / 2, half).fill((first * spec.head_dim) as u64, to);
            });
            self.write_rows(unit, bytemuck::cast_slice(&kv))?;
        }
        Ok(())
    }

    /// Nothing is amiss so far.
    pub(super) fn clear_pack_fault(&self) {
        if self.plan.coded() {
            self.memories.grant(self.plan.pack_fault_operand()).write::<u32>(Role::PackFault, 0)[0] = 0;
        }
    }

    /// # Errors
    /// When a step met a unit that had no plane left.
    pub(super) fn check_pack_fault(&self) -> Result<(), BackendError> {
        if !self.plan.coded() {
            return Ok(());
        }
        let grant = self.memories.grant(self.plan.pack_fault_operand());
        match grant.read::<u32>(Role::PackFault, 0)[0].checked_sub(1) {
            Some(unit) => Err(self.plan.no_plane(unit as usize)),
            None => Ok(()),
        }
    }
}

const OPEN: [Role; 2] = [Role::OpenKey, Role::OpenValue];

impl UnitMemory for Executor {
    type Error = Infallible;

    fn read_unit(&self, unit: usize, then: &mut ReadHalves<'_>) -> Result<(), Infallible> {
        let g = self.memories.grant(self.plan.unit_operands(unit, Access::Read));
        let half = self.codec().half_bytes();
        let heads = (0..g.count(Role::Units)).map(|head| g.read::<u8>(Role::Units, head));
        let halves: Vec<&[u8]> = heads.flat_map(|head| head.chunks_exact(half)).collect();
        then(&halves, if g.count(Role::Planes) > 0 { g.read::<u8>(Role::Planes, 0) } else { &[] });
        Ok(())
    }

    fn write_unit(&self, unit: usize, then: &mut WriteHalves<'_>) -> Result<(), Infallible> {
        let g = self.memories.grant(self.plan.unit_operands(unit, Access::Write));
        let half = self.codec().half_bytes();
        let heads = (0..g.count(Role::UnitsTo)).map(|head| g.write::<u8>(Role::UnitsTo, head));
        let halves: Vec<&mut [u8]> = heads.flat_map(|head| head.chunks_exact_mut(half)).collect();
        then(halves, if g.count(Role::Planes) > 0 { g.write::<u8>(Role::Planes, 0) } else { &mut [] });
        Ok(())
    }

    fn read_open(&self, rows: Range<usize>, to: Vec<&mut [u8]>) -> Result<(), Infallible> {
        let g = self.memories.grant(self.plan.open_operands(rows, Access::Read));
        let copy = |(half, to): (usize, &mut [u8])| to.copy_from_slice(g.read(OPEN[half % 2], half / 2));
        to.into_iter().enumerate().for_each(copy);
        Ok(())
    }

    fn write_open(&self, rows: Range<usize>, from: Vec<&[u8]>) -> Result<(), Infallible> {
        let g = self.memories.grant(self.plan.open_operands(rows, Access::Write));
        let copy = |(half, from)| g.write::<u8>(OPEN[half % 2], half / 2).copy_from_slice(from);
        from.into_iter().enumerate().for_each(copy);
        Ok(())
    }
}

/// Copies the ranges of each pair of roles.
pub(super) fn copy<const N: usize>(g: &Grant<'_>, roles: [(Role, Role); N]) {
    for (from, to) in roles {
        for k in 0..g.count(from) {
            g.write::<u8>(to, k).copy_from_slice(g.read::<u8>(from, k));
        }
    }
}

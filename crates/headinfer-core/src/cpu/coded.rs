//! A coded store on the CPU: units are coded and decoded, by the ops of a step and by what reads or writes rows between
//! steps. Must not know where anything lies: that is the operands' business.

use std::ops::Range;

use rayon::prelude::*;

use super::exec::Executor;
use super::kernels::Isa;
use super::kernels::packed::{pack_half, pack_half_plane, plane_of, unpack_half};
use super::kernels::quantised::{Half as Coded, dequantise_half, quantise_half};
use crate::backend::BackendError;
use crate::memory::Grant;
use crate::model::spec::ModelSpec;
use crate::model::synthetic::{Half, SyntheticKv};
use crate::plan::{Access, KvFormat, Plan, Role, Step, UNIT};

/// What codes halves of units: bf16 bits `[UNIT, head_dim]` each.
struct Codec {
    isa: Isa,
    format: KvFormat,
    head_dim: usize,
}

impl Codec {
    fn of(x: &Executor) -> Self {
        Self { isa: x.isa, format: x.plan.knobs().kv, head_dim: x.plan.spec.head_dim }
    }

    fn half_bytes(&self) -> usize {
        self.format.half_bytes(self.head_dim)
    }

    /// Codes halves of one unit, keys and values in turns; those that do not fit take planes from number `taken` on, in the order of the halves.
    /// False when none is left.
    fn code(&self, halves: Vec<(&[u16], &mut [u8])>, planes: &mut [u8], taken: &mut u32) -> bool {
        let (isa, d) = (self.isa, self.head_dim);
        if self.format == KvFormat::Bf16 {
            halves.into_par_iter().for_each(|(rows, to)| to.copy_from_slice(bytemuck::cast_slice(rows)));
            return true;
        }
        if let Some(format) = self.format.quantised() {
            let halves = halves.into_par_iter().enumerate();
            halves.for_each(|(i, (rows, to))| quantise_half(isa, format, coded(i), d, rows, to));
            return true;
        }
        let wide = halves.into_par_iter().filter_map(|(rows, to)| {
            let fits = pack_half(isa, d, rows, &mut *to);
            (!fits).then_some((rows, to))
        });
        let wide: Vec<_> = wide.collect();
        let mut free = planes.chunks_exact_mut(self.format.plane_bytes(d)).skip(*taken as usize);
        wide.into_iter().all(|(rows, to)| {
            let plane = free.next();
            let found = plane.is_some();
            if let Some(plane) = plane {
                pack_half_plane(isa, d, rows, to, plane, *taken);
                *taken += 1;
            }
            found
        })
    }

    /// The rows of a half, the `index`-th of its unit, with the planes of the unit.
    fn decode(&self, index: usize, half: &[u8], planes: &[u8], rows: &mut [u16]) {
        if self.format == KvFormat::Bf16 {
            bytemuck::cast_slice_mut(rows).copy_from_slice(half);
            return;
        }
        if let Some(format) = self.format.quantised() {
            return dequantise_half(self.isa, format, coded(index), self.head_dim, half, rows);
        }
        let each = self.format.plane_bytes(self.head_dim);
        let plane = plane_of(half, self.head_dim).map(|number| &planes[number as usize * each..][..each]);
        unpack_half(self.isa, self.head_dim, half, plane, rows);
    }
}

/// Keys and values take turns.
fn coded(index: usize) -> Coded {
    [Coded::Keys, Coded::Values][index % 2]
}

/// Halves of the canonical form of `n` rows that belong to heads on the host: keys, then values, head by head.
fn of_host(plan: &Plan) -> impl Fn(usize) -> bool + use<'_> {
    move |half| {
        let (head, layer) = (half / 2 % plan.spec.kv_heads, half / 2 / plan.spec.kv_heads);
        head >= plan.layout().resident(layer).end
    }
}

fn row_bytes(spec: &ModelSpec) -> usize {
    spec.head_dim * 2
}

impl Executor {
    /// The op `Pack`: `g` is its grant.
    pub(super) fn pack(&self, step: &Step, layer: usize, g: &Grant<'_>) {
        copy(g, [(Role::OwnKey, Role::KeyTo), (Role::OwnValue, Role::ValueTo)]);
        let units = self.plan.new_units(step);
        if units.is_empty() {
            return;
        }
        let (codec, d) = (Codec::of(self), self.plan.spec.head_dim);
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
        let (codec, d, each) = (Codec::of(self), self.plan.spec.head_dim, self.plane_bytes());
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
        let (codec, d, row) = (Codec::of(self), self.plan.spec.head_dim, row_bytes(&self.plan.spec));
        let whole = held - self.plan.open_rows(held);
        let on_host = of_host(&self.plan);
        let halves = to.chunks_exact_mut(rows.len() * row).enumerate();
        let mut halves: Vec<_> = halves.filter(|(half, _)| on_host(*half)).map(|(_, half)| half).collect();
        let mut at = rows.start;
        while at < rows.end.min(whole) {
            let first = at / UNIT * UNIT;
            let end = rows.end.min(first + UNIT);
            let g = self.memories.grant(self.plan.unit_operands(first / UNIT, Access::Read));
            let units: Vec<&[u8]> = (0..g.count(Role::Units)).map(|head| g.read(Role::Units, head)).collect();
            let planes = if g.count(Role::Planes) > 0 { g.read::<u8>(Role::Planes, 0) } else { &[] };
            halves.par_iter_mut().enumerate().for_each_init(
                || vec![0; UNIT * d],
                |values, (index, to)| {
                    let half = &units[index / 2][index % 2 * codec.half_bytes()..][..codec.half_bytes()];
                    codec.decode(index, half, planes, values);
                    let values = &values[(at - first) * d..(end - first) * d];
                    to[(at - rows.start) * row..(end - rows.start) * row]
                        .copy_from_slice(bytemuck::cast_slice(values));
                },
            );
            at = end;
        }
        if at < rows.end {
            let g = self.memories.grant(self.plan.open_operands(at - whole..rows.end - whole, Access::Read));
            for (index, to) in halves.iter_mut().enumerate() {
                let role = [Role::OpenKey, Role::OpenValue][index % 2];
                to[(at - rows.start) * row..].copy_from_slice(g.read(role, index / 2));
            }
        }
    }

    /// K and V of `rows` from their canonical form to units, and the rest to the open unit, of heads on the host.
    ///
    /// # Errors
    /// When a unit has no plane left.
    pub(super) fn write_units(&self, rows: &Range<usize>, from: &[u8]) -> Result<(), BackendError> {
        let row = row_bytes(&self.plan.spec);
        let on_host = of_host(&self.plan);
        let halves = from.chunks_exact(rows.len() * row).enumerate();
        let halves: Vec<_> = halves.filter(|(half, _)| on_host(*half)).map(|(_, half)| half).collect();
        let mut at = rows.start;
        while at < rows.end {
            let first = at / UNIT * UNIT;
            let end = rows.end.min(first + UNIT);
            let part = (at - rows.start) * row..(end - rows.start) * row;
            if end == first + UNIT {
                self.write_unit(first / UNIT, at - first, &halves, part)?;
            } else {
                let g = self.memories.grant(self.plan.open_operands(at - first..end - first, Access::Write));
                for (index, half) in halves.iter().enumerate() {
                    let role = [Role::OpenKey, Role::OpenValue][index % 2];
                    g.write::<u8>(role, index / 2).copy_from_slice(&half[part.clone()]);
                }
            }
            at = end;
        }
        Ok(())
    }

    /// Completes `unit`, of which `open` rows are there, with `part` of all halves.
    fn write_unit(
        &self,
        unit: usize,
        open: usize,
        halves: &[&[u8]],
        part: Range<usize>,
    ) -> Result<(), BackendError> {
        let (codec, row) = (Codec::of(self), row_bytes(&self.plan.spec));
        let before = self.memories.grant(self.plan.open_operands(0..open, Access::Read));
        let values = halves.par_iter().enumerate().map(|(index, half)| {
            let mut values = vec![0u16; UNIT * self.plan.spec.head_dim];
            let (old, new) = bytemuck::cast_slice_mut::<u16, u8>(&mut values).split_at_mut(open * row);
            if open > 0 {
                old.copy_from_slice(before.read([Role::OpenKey, Role::OpenValue][index % 2], index / 2));
            }
            new.copy_from_slice(&half[part.clone()]);
            values
        });
        let values: Vec<_> = values.collect();
        let g = self.memories.grant(self.plan.unit_operands(unit, Access::Write));
        let to = (0..g.count(Role::UnitsTo)).flat_map(|head| {
            let (key, value) = g.write::<u8>(Role::UnitsTo, head).split_at_mut(codec.half_bytes());
            [key, value]
        });
        let planes = if g.count(Role::Planes) > 0 { g.write::<u8>(Role::Planes, 0) } else { &mut [] };
        let taken = &mut g.write::<u32>(Role::PlaneCounts, 0)[0];
        *taken = 0;
        match codec.code(values.iter().map(Vec::as_slice).zip(to).collect(), planes, taken) {
            true => Ok(()),
            false => Err(self.plan.no_plane(unit)),
        }
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

/// Copies the ranges of each pair of roles.
pub(super) fn copy<const N: usize>(g: &Grant<'_>, roles: [(Role, Role); N]) {
    for (from, to) in roles {
        for k in 0..g.count(from) {
            g.write::<u8>(to, k).copy_from_slice(g.read::<u8>(from, k));
        }
    }
}

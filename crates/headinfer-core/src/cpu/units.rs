//! K and V of rows that lie in units: from there to their canonical form and back, between steps, for every backend.
//! Must not know whose memory it is.
//!
//! Halves are those of the heads on the host: keys, then values, head by head.

use std::ops::Range;

use rayon::prelude::*;

use super::kernels::Isa;
use super::kernels::packed::{pack_half, pack_half_plane, plane_of, unpack_half};
use super::kernels::quantised::{Half, dequantise_half, quantise_half};
use crate::plan::{KvFormat, Plan, UNIT};

/// What codes halves of units: bf16 bits `[UNIT, head_dim]` each.
pub struct UnitCodec {
    isa: Isa,
    format: KvFormat,
    head_dim: usize,
}

impl UnitCodec {
    /// That of a plan's store.
    ///
    /// # Panics
    /// When the store is not coded.
    pub fn new(isa: Isa, plan: &Plan) -> Self {
        assert!(plan.coded(), "a store of {} has no codec", plan.knobs().kv.name());
        Self { isa, format: plan.knobs().kv, head_dim: plan.spec.head_dim }
    }

    fn row_bytes(&self) -> usize {
        self.head_dim * 2
    }

    /// Bytes of a coded half.
    pub fn half_bytes(&self) -> usize {
        self.format.half_bytes(self.head_dim)
    }

    /// Codes halves of one unit, keys and values in turns; those that do not fit take planes from number `taken` on, in
    /// the order of the halves. False when none is left.
    pub fn code(&self, halves: Vec<(&[u16], &mut [u8])>, planes: &mut [u8], taken: &mut u32) -> bool {
        let (isa, d) = (self.isa, self.head_dim);
        if let Some(format) = self.format.quantised() {
            let halves = halves.into_par_iter().enumerate();
            halves.for_each(|(i, (rows, to))| quantise_half(isa, format, which(i), d, rows, to));
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
    pub fn decode(&self, index: usize, half: &[u8], planes: &[u8], rows: &mut [u16]) {
        if let Some(format) = self.format.quantised() {
            return dequantise_half(self.isa, format, which(index), self.head_dim, half, rows);
        }
        let each = self.format.plane_bytes(self.head_dim);
        let plane = plane_of(half, self.head_dim).map(|number| &planes[number as usize * each..][..each]);
        unpack_half(self.isa, self.head_dim, half, plane, rows);
    }
}

/// Keys and values take turns.
fn which(index: usize) -> Half {
    [Half::Keys, Half::Values][index % 2]
}

/// Takes coded halves of a unit and its planes, to be read.
pub type ReadHalves<'a> = dyn FnMut(&[&[u8]], &[u8]) + 'a;

/// The same, to be written.
pub type WriteHalves<'a> = dyn FnMut(Vec<&mut [u8]>, &mut [u8]) + 'a;

/// Where a backend keeps units and open rows.
pub trait UnitMemory {
    /// Why it cannot be reached.
    type Error;

    /// Lends the coded halves of `unit`, and its planes.
    ///
    /// # Errors
    /// When the memory cannot be reached.
    fn read_unit(&self, unit: usize, then: &mut ReadHalves<'_>) -> Result<(), Self::Error>;

    /// As [`UnitMemory::read_unit`], to be written.
    ///
    /// # Errors
    /// When the memory cannot be reached.
    fn write_unit(&self, unit: usize, then: &mut WriteHalves<'_>) -> Result<(), Self::Error>;

    /// Copies rows of the open unit, counted from its start, of each half.
    ///
    /// # Errors
    /// When the memory cannot be reached.
    fn read_open(&self, rows: Range<usize>, to: Vec<&mut [u8]>) -> Result<(), Self::Error>;

    /// The other way.
    ///
    /// # Errors
    /// When the memory cannot be reached.
    fn write_open(&self, rows: Range<usize>, from: Vec<&[u8]>) -> Result<(), Self::Error>;
}

/// K and V of `rows` of the `held` ones, of heads on the host, to `to`, the canonical form of all heads.
///
/// # Errors
/// When the memory cannot be reached.
pub fn read_units<M: UnitMemory>(
    codec: &UnitCodec,
    (plan, memory): (&Plan, &M),
    rows: &Range<usize>,
    held: usize,
    to: &mut [u8],
) -> Result<(), M::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let (d, row) = (codec.head_dim, codec.row_bytes());
    let whole = held - plan.open_rows(held);
    let on_host = of_host(plan);
    let halves = to.chunks_exact_mut(rows.len() * row).enumerate();
    let mut halves: Vec<_> = halves.filter(|(half, _)| on_host(*half)).map(|(_, half)| half).collect();
    let mut at = rows.start;
    while at < rows.end.min(whole) {
        let first = at / UNIT * UNIT;
        let end = rows.end.min(first + UNIT);
        let part = (at - rows.start) * row..(end - rows.start) * row;
        memory.read_unit(first / UNIT, &mut |coded, planes| {
            halves.par_iter_mut().zip(coded).enumerate().for_each_init(
                || vec![0; UNIT * d],
                |values, (index, (to, half))| {
                    codec.decode(index, half, planes, values);
                    let values = &values[(at - first) * d..(end - first) * d];
                    to[part.clone()].copy_from_slice(bytemuck::cast_slice(values));
                },
            );
        })?;
        at = end;
    }
    if at < rows.end {
        let to = halves.iter_mut().map(|half| &mut half[(at - rows.start) * row..]).collect();
        memory.read_open(at - whole..rows.end - whole, to)?;
    }
    Ok(())
}

/// K and V of `rows` from `from`, the canonical form of all heads, to units, and the rest to the open unit. Returns the
/// unit that has no plane left, if one has not: the rows are of no use then.
///
/// # Errors
/// When the memory cannot be reached.
pub fn write_units<M: UnitMemory>(
    codec: &UnitCodec,
    (plan, memory): (&Plan, &M),
    rows: &Range<usize>,
    from: &[u8],
) -> Result<Option<usize>, M::Error> {
    if rows.is_empty() {
        return Ok(None);
    }
    let row = codec.row_bytes();
    let on_host = of_host(plan);
    let halves = from.chunks_exact(rows.len() * row).enumerate();
    let halves: Vec<_> = halves.filter(|(half, _)| on_host(*half)).map(|(_, half)| half).collect();
    let mut at = rows.start;
    while at < rows.end {
        let first = at / UNIT * UNIT;
        let end = rows.end.min(first + UNIT);
        let part = (at - rows.start) * row..(end - rows.start) * row;
        let new: Vec<&[u8]> = halves.iter().map(|half| &half[part.clone()]).collect();
        if end < first + UNIT {
            memory.write_open(at - first..end - first, new)?;
        } else if !write_unit(codec, memory, first / UNIT, at - first, &new)? {
            return Ok(Some(first / UNIT));
        }
        at = end;
    }
    Ok(None)
}

/// Completes `unit`, of which `open` rows are there, with the rows after them. False when it has no plane left.
fn write_unit<M: UnitMemory>(
    codec: &UnitCodec,
    memory: &M,
    unit: usize,
    open: usize,
    new: &[&[u8]],
) -> Result<bool, M::Error> {
    let mut values = vec![vec![0u16; UNIT * codec.head_dim]; new.len()];
    let parts = values
        .iter_mut()
        .map(|half| bytemuck::cast_slice_mut::<u16, u8>(half).split_at_mut(open * codec.row_bytes()));
    let (old, rest): (Vec<_>, Vec<_>) = parts.unzip();
    rest.into_iter().zip(new).for_each(|(to, from)| to.copy_from_slice(from));
    if open > 0 {
        memory.read_open(0..open, old)?;
    }
    let mut found = false;
    memory.write_unit(unit, &mut |to, planes| {
        found = codec.code(values.iter().map(Vec::as_slice).zip(to).collect(), planes, &mut 0);
    })?;
    Ok(found)
}

/// Halves of the canonical form that belong to heads on the host.
fn of_host(plan: &Plan) -> impl Fn(usize) -> bool + use<'_> {
    move |half| {
        let (head, layer) = (half / 2 % plan.spec.kv_heads, half / 2 / plan.spec.kv_heads);
        head >= plan.layout().resident(layer).end
    }
}

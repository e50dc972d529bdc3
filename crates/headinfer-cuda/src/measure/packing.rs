//! Packing and unpacking alone: what the kernels make of rows that a test gives them, and their rates.

use cudarc::driver::result;
use headinfer_core::cpu::kernels::packed::{UNIT, half_bytes, plane_bytes};
use headinfer_core::plan::Span;

use super::{ALIGN, Bed};
use crate::arena::Pointer;
use crate::error::{CudaError, Named};
use crate::launch::pack::{Pack, Unpack};

/// Units of some heads.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    /// Heads.
    pub heads: usize,
    /// Units of each.
    pub units: usize,
    /// Room for planes of each unit, all heads together.
    pub planes: usize,
}

/// What packing made of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// `[head][unit][K | V][half_bytes]`.
    pub halves: Vec<u8>,
    /// `[unit][plane][plane_bytes]`.
    pub planes: Vec<u8>,
    /// Planes wanted by each unit.
    pub counts: Vec<u32>,
    /// 1 + a unit that wanted more than there are, else 0.
    pub fault: u32,
    /// What unpacking made of the halves, in the order of the rows; nothing after a fault.
    pub restored: Vec<u16>,
}

/// Bytes per second, read and written, of packing and of unpacking normal values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PackingRates {
    /// Of packing.
    pub pack: f64,
    /// Of unpacking.
    pub unpack: f64,
}

/// Where everything lies: spans on the device, offsets of the host's memory.
pub(super) struct Places {
    pub(super) rows: Span,
    pub(super) halves: Span,
    pub(super) restored: Span,
    counts: Span,
    planes: Span,
    fault: Span,
}

impl Packing {
    /// Device memory it takes.
    pub fn device_bytes(&self, head_dim: usize) -> u64 {
        let [rows, halves, counts, _] = self.sizes(head_dim);
        [rows, halves, rows, counts].iter().map(|bytes| bytes.next_multiple_of(ALIGN)).sum()
    }

    /// Host memory it takes.
    pub fn host_bytes(&self, head_dim: usize) -> u64 {
        self.sizes(head_dim)[3].next_multiple_of(ALIGN) + ALIGN
    }

    /// Bytes of rows, halves, counts and planes.
    fn sizes(&self, d: usize) -> [u64; 4] {
        let halves = 2 * self.heads * self.units;
        let planes = self.units * self.planes * plane_bytes(d);
        [halves * UNIT * d * 2, halves * half_bytes(d), 4 * self.units, planes].map(|bytes| bytes as u64)
    }
}

impl Bed {
    /// Packs `rows`, bf16 `[head][K | V][units, UNIT, head_dim]`, and unpacks what came of it.
    ///
    /// # Errors
    /// [`CudaError`] when the device failed.
    ///
    /// # Panics
    /// When the bed is too small, or `rows` are not those of `p`.
    pub fn packed(&mut self, p: &Packing, rows: &[u16]) -> Result<Packed, CudaError> {
        self.context.enter()?;
        let places = self.packing_places(p);
        self.put(places.rows, bytemuck::cast_slice(rows))?;
        self.put(places.counts, &vec![0; places.counts.bytes as usize])?;
        self.memories.host::<u8>(places.fault).fill(0);
        self.memories.host::<u8>(places.planes).fill(0);
        self.pack(p, &places)?;
        self.lanes[0].synchronize()?;
        let mut packed = Packed {
            halves: self.take(places.halves)?,
            planes: self.memories.host::<u8>(places.planes).to_vec(),
            counts: self.take(places.counts)?,
            fault: self.memories.host::<u32>(places.fault)[0],
            restored: Vec::new(),
        };
        if packed.fault == 0 {
            self.unpack(p, &places)?;
            self.lanes[0].synchronize()?;
            packed.restored = self.take(places.restored)?;
        }
        Ok(packed)
    }

    /// Measures both on the bed's normal values.
    ///
    /// # Errors
    /// [`CudaError`] when the device failed.
    ///
    /// # Panics
    /// When the bed is too small.
    pub fn packing(&mut self, p: &Packing) -> Result<PackingRates, CudaError> {
        let places = self.packing_places(p);
        let bytes = (places.rows.bytes + places.halves.bytes) as f64;
        let pack = bytes / self.time(|bed| bed.pack(p, &places))?;
        // The measurement scattered values over the halves: they are packed anew each time, and that is subtracted.
        let both = bytes / self.time(|bed| bed.pack(p, &places).and_then(|()| bed.unpack(p, &places)))?;
        Ok(PackingRates { pack, unpack: 1.0 / (1.0 / both - 1.0 / pack) })
    }

    pub(super) fn take<T: bytemuck::Pod>(&self, span: Span) -> Result<Vec<T>, CudaError> {
        let mut all = vec![T::zeroed(); span.bytes as usize / size_of::<T>()];
        // SAFETY: the range is inside the arena, as `pointer` asserts.
        unsafe { result::memcpy_dtoh_sync(&mut all, self.memories.pointer(span)) }.named("cuMemcpyDtoH")?;
        Ok(all)
    }

    pub(super) fn packing_places(&self, p: &Packing) -> Places {
        let [rows, halves, counts, planes] = p.sizes(self.head_dim);
        let mut end = 0;
        let mut device = |bytes: u64| {
            let span = self.device(end, bytes);
            end += bytes.next_multiple_of(ALIGN);
            span
        };
        Places {
            rows: device(rows),
            halves: device(halves),
            restored: device(rows),
            counts: device(counts),
            fault: self.host(0, ALIGN),
            planes: self.host(ALIGN, planes),
        }
    }

    fn pack(&self, p: &Packing, places: &Places) -> Result<(), CudaError> {
        let half = half_bytes(self.head_dim) as u64;
        let heads: Vec<_> = (0..p.heads).map(|head| self.rows_of(p, places.rows, head)).collect();
        let pack = Pack {
            heads: &heads,
            to: self.memories.pointer(places.halves),
            unit_stride: 2 * half,
            head_stride: 2 * half * p.units as u64,
            planes: &self.planes_of(p, places)?,
            planes_max: p.planes,
            counts: self.memories.pointer(places.counts),
            first_unit: 0,
            fault: self.memories.mapped(places.fault)?,
        };
        self.kernels.pack(self.lanes[0].raw(), &pack)
    }

    fn unpack(&self, p: &Packing, places: &Places) -> Result<(), CudaError> {
        let half = half_bytes(self.head_dim) as u64;
        let halves = self.memories.pointer(places.halves);
        let heads = (0..p.heads).map(|head| {
            let [k, v] = self.rows_of(p, places.restored, head);
            [halves + 2 * half * (head * p.units) as u64, k, v]
        });
        let unpack = Unpack { heads: &heads.collect::<Vec<_>>(), planes: &self.planes_of(p, places)? };
        self.kernels.unpack(self.lanes[0].raw(), &unpack)
    }

    /// Keys and values of a head.
    pub(super) fn rows_of(&self, p: &Packing, rows: Span, head: usize) -> [Pointer; 2] {
        let half = (p.units * UNIT * self.head_dim * 2) as u64;
        [0, 1].map(|which| self.memories.pointer(rows) + (2 * head as u64 + which) * half)
    }

    /// The planes of each unit.
    fn planes_of(&self, p: &Packing, places: &Places) -> Result<Vec<Pointer>, CudaError> {
        let first = self.memories.mapped(places.planes)?;
        let bytes = (p.planes * plane_bytes(self.head_dim)) as u64;
        Ok((0..p.units as u64).map(|unit| first + unit * bytes).collect())
    }
}

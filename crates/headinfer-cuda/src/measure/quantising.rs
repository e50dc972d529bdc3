//! Quantising alone: what the kernels make of rows that a test gives them, and their rates.

use headinfer_core::cpu::kernels::quantised::Quantised;
use headinfer_core::plan::Span;

use super::Bed;
use super::packing::{Packing, PackingRates, Places};
use crate::error::CudaError;
use crate::launch::quantise::{Dequantise, Quantise};

impl Bed {
    /// Codes `rows`, bf16 `[head][K | V][units, UNIT, head_dim]`, and decodes what came of it: the halves
    /// `[head][unit][K | V][half_bytes]`, and the rows in their order. Planes of `p` are not used.
    ///
    /// # Errors
    /// [`CudaError`] when the device failed.
    ///
    /// # Panics
    /// When the bed is too small, or `rows` are not those of `p`.
    pub fn quantised(
        &mut self,
        format: Quantised,
        p: &Packing,
        rows: &[u16],
    ) -> Result<(Vec<u8>, Vec<u16>), CudaError> {
        self.context.enter()?;
        let places = self.packing_places(p);
        self.put(places.rows, bytemuck::cast_slice(rows))?;
        self.quantise(format, p, &places)?;
        self.dequantise(format, p, &places)?;
        self.lanes[0].synchronize()?;
        let bytes = (2 * p.heads * p.units * format.half_bytes(self.head_dim)) as u64;
        Ok((self.take(Span { bytes, ..places.halves })?, self.take(places.restored)?))
    }

    /// Measures both on the bed's normal values.
    ///
    /// # Errors
    /// [`CudaError`] when the device failed.
    ///
    /// # Panics
    /// When the bed is too small.
    pub fn quantising(&mut self, format: Quantised, p: &Packing) -> Result<PackingRates, CudaError> {
        let places = self.packing_places(p);
        let halves = 2 * p.heads * p.units * format.half_bytes(self.head_dim);
        let bytes = (places.rows.bytes + halves as u64) as f64;
        let pack = bytes / self.time(|bed| bed.quantise(format, p, &places))?;
        let unpack = bytes / self.time(|bed| bed.dequantise(format, p, &places))?;
        Ok(PackingRates { pack, unpack })
    }

    fn quantise(&self, format: Quantised, p: &Packing, places: &Places) -> Result<(), CudaError> {
        let half = format.half_bytes(self.head_dim) as u64;
        let heads: Vec<_> = (0..p.heads).map(|head| self.rows_of(p, places.rows, head)).collect();
        let quantise = Quantise {
            format,
            heads: &heads,
            units: p.units,
            to: self.memories.pointer(places.halves),
            unit_stride: 2 * half,
            head_stride: 2 * half * p.units as u64,
        };
        self.kernels.quantise(self.lanes[0].raw(), &quantise)
    }

    fn dequantise(&self, format: Quantised, p: &Packing, places: &Places) -> Result<(), CudaError> {
        let half = format.half_bytes(self.head_dim) as u64;
        let halves = self.memories.pointer(places.halves);
        let heads = (0..p.heads).map(|head| {
            let [k, v] = self.rows_of(p, places.restored, head);
            [halves + 2 * half * (head * p.units) as u64, k, v]
        });
        let dequantise = Dequantise { format, heads: &heads.collect::<Vec<_>>(), units: p.units };
        self.kernels.dequantise(self.lanes[0].raw(), &dequantise)
    }
}

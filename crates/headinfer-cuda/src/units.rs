//! K and V between steps, while all lanes are idle: copied where they lie as they are, coded and decoded by the CPU
//! where they lie in units, in pinned memory.

use std::ops::Range;

use cudarc::driver::result;
use headinfer_core::cpu::kernels::Isa;
use headinfer_core::cpu::{ReadHalves, UnitCodec, UnitMemory, WriteHalves, read_units, write_units};
use headinfer_core::plan::{Access, Memory, Role, Span};
use rayon::prelude::*;

use crate::error::{CudaError, Named};
use crate::exec::Executor;

impl Executor {
    /// K and V of `rows` of the `held` ones to their canonical form.
    pub(crate) fn read_rows(&self, rows: Range<usize>, held: usize, to: &mut [u8]) -> Result<(), CudaError> {
        let pieces = self.plan.rows_into(rows.clone(), to);
        let (host, device): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|p| p.0.memory == Memory::Host);
        let memories = &self.memories;
        host.into_par_iter().for_each(|(span, to)| to.copy_from_slice(memories.host::<u8>(span)));
        device.into_iter().try_for_each(|(span, to)| self.read_device(span, to))?;
        match self.plan.coded() {
            true => read_units(&self.codec(), (&self.plan, self), &rows, held, to),
            false => Ok(()),
        }
    }

    /// The other way. Returns the unit that has no plane left, if one has not.
    pub(crate) fn write_rows(&self, rows: Range<usize>, from: &[u8]) -> Result<Option<usize>, CudaError> {
        let pieces = self.plan.rows_from(rows.clone(), from);
        let (host, device): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|p| p.0.memory == Memory::Host);
        let memories = &self.memories;
        host.into_par_iter().for_each(|(span, from)| memories.host::<u8>(span).copy_from_slice(from));
        device.into_iter().try_for_each(|(span, from)| self.memories.put(span, from))?;
        match self.plan.coded() {
            true => write_units(&self.codec(), (&self.plan, self), &rows, from),
            false => Ok(None),
        }
    }

    fn read_device(&self, span: Span, to: &mut [u8]) -> Result<(), CudaError> {
        assert_eq!(span.bytes, to.len() as u64, "a range is read whole");
        // SAFETY: the range is inside the arena, as `pointer` asserts, and `to` is as long.
        unsafe { result::memcpy_dtoh_sync(to, self.memories.pointer(span)) }.named("cuMemcpyDtoH")
    }

    /// The unit that a step so far found without a plane left.
    pub(crate) fn pack_fault(&self) -> Option<usize> {
        if !self.plan.coded() {
            return None;
        }
        let fault = &self.memories.host::<u32>(self.plan.pack_fault_operand().span(Role::PackFault, 0))[0];
        // SAFETY: a live reference; kernels may write it meanwhile.
        let number = unsafe { std::ptr::from_ref(fault).read_volatile() };
        number.checked_sub(1).map(|unit| unit as usize)
    }

    /// Nothing is amiss so far.
    pub(crate) fn clear_pack_fault(&self) {
        if self.plan.coded() {
            self.memories.host::<u32>(self.plan.pack_fault_operand().span(Role::PackFault, 0))[0] = 0;
        }
    }

    fn codec(&self) -> UnitCodec {
        UnitCodec::new(Isa::detect(), &self.plan)
    }

    /// Keys and values of some rows of the open unit, head by head.
    fn open(&self, rows: Range<usize>, access: Access) -> Vec<Span> {
        let o = self.plan.open_operands(rows, access);
        let pairs = o.spans(Role::OpenKey).zip(o.spans(Role::OpenValue));
        pairs.flat_map(|(key, value)| [key, value]).collect()
    }
}

impl UnitMemory for Executor {
    type Error = CudaError;

    fn read_unit(&self, unit: usize, then: &mut ReadHalves<'_>) -> Result<(), CudaError> {
        let (o, half) = (self.plan.unit_operands(unit, Access::Read), self.codec().half_bytes());
        let heads = o.spans(Role::Units).map(|span| -> &[u8] { self.memories.host(span) });
        let halves: Vec<&[u8]> = heads.flat_map(|head| head.chunks_exact(half)).collect();
        let planes = o.spans(Role::Planes).next();
        then(&halves, planes.map_or(&[], |span| self.memories.host(span)));
        Ok(())
    }

    fn write_unit(&self, unit: usize, then: &mut WriteHalves<'_>) -> Result<(), CudaError> {
        let (o, half) = (self.plan.unit_operands(unit, Access::Write), self.codec().half_bytes());
        let heads = o.spans(Role::UnitsTo).map(|span| -> &mut [u8] { self.memories.host(span) });
        let halves: Vec<&mut [u8]> = heads.flat_map(|head| head.chunks_exact_mut(half)).collect();
        let planes = o.spans(Role::Planes).next();
        then(halves, planes.map_or(&mut [], |span| self.memories.host(span)));
        Ok(())
    }

    fn read_open(&self, rows: Range<usize>, to: Vec<&mut [u8]>) -> Result<(), CudaError> {
        let spans = self.open(rows, Access::Read).into_iter();
        spans.zip(to).try_for_each(|(span, to)| self.read_device(span, to))
    }

    fn write_open(&self, rows: Range<usize>, from: Vec<&[u8]>) -> Result<(), CudaError> {
        let spans = self.open(rows, Access::Write).into_iter();
        spans.zip(from).try_for_each(|(span, from)| self.memories.put(span, from))
    }
}

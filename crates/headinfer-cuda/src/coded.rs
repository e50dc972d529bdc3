//! The ops of a coded store: units that a step completes are coded, tiles come out of their ring slots decoded, and
//! rows of the unit that is not whole yet move between the places where they wait and where they are attended to.

use std::ops::Range;

use cudarc::driver::sys::CUstream;
use headinfer_core::plan::{Operands, Role, Span};

use crate::arena::Pointer;
use crate::error::CudaError;
use crate::exec::{Executor, Run};
use crate::launch::pack::{Pack, Unpack};
use crate::launch::quantise::{Dequantise, Quantise};

impl Run<'_> {
    /// Open rows of the layer to the place in front of the step's own.
    pub(crate) fn open_to_seam(&mut self) -> Result<(), CudaError> {
        self.move_rows(&[(Role::OpenKey, Role::KeyTo), (Role::OpenValue, Role::ValueTo)])
    }

    pub(crate) fn pack(&mut self, layer: usize) -> Result<(), CudaError> {
        self.move_rows(&[(Role::OwnKey, Role::KeyTo), (Role::OwnValue, Role::ValueTo)])?;
        let units = self.plan.new_units(self.step);
        if units.is_empty() {
            return Ok(());
        }
        let counts = self.at(Role::PlaneCounts, 0);
        // The layers share a unit's planes. Heads live on the host in the first layer if they do in any.
        if layer == 0 {
            self.x.kernels.clear_words(self.stream, counts, units.len())?;
        }
        let to: Vec<Pointer> = self.spans(Role::UnitsTo).map(|span| self.x.memories.pointer(span)).collect();
        let heads: Vec<_> = (0..to.len()).map(|h| [self.at(Role::Key, h), self.at(Role::Value, h)]).collect();
        let stride = to.get(1).map_or(0, |second| second - to[0]);
        self.x.pack(self.stream, self.o, &heads, (to[0], stride), units)
    }

    pub(crate) fn unpack(&mut self) -> Result<(), CudaError> {
        let count = self.spans(Role::Units).count();
        let head = |h| [self.at(Role::Units, h), self.at(Role::KeyTo, h), self.at(Role::ValueTo, h)];
        let heads: Vec<_> = (0..count).map(head).collect();
        match self.plan.knobs().kv.quantised() {
            Some(format) => {
                let units = self.span(Role::Units, 0).bytes / self.x.unit_bytes();
                let dequantise = Dequantise { format, heads: &heads, units: units as usize };
                self.x.kernels.dequantise(self.stream, &dequantise)?;
            }
            None => {
                let unpack = Unpack { heads: &heads, planes: &self.x.planes(self.o)? };
                self.x.kernels.unpack(self.stream, &unpack)?;
            }
        }
        let mut ranges = Vec::new();
        let mut bytes = 0;
        for (from, to) in [(Role::OpenKey, Role::KeyTo), (Role::OpenValue, Role::ValueTo)] {
            for (from, to) in self.spans(from).zip(self.spans(to)) {
                let end = Span { offset: to.offset + to.bytes - from.bytes, bytes: from.bytes, ..to };
                ranges.push((self.x.memories.pointer(from), self.x.memories.pointer(end)));
                bytes = from.bytes;
            }
        }
        self.x.kernels.move_rows(self.stream, &ranges, bytes)
    }

    /// Copies the ranges of each pair of roles, all of one size, within the device.
    fn move_rows(&mut self, roles: &[(Role, Role)]) -> Result<(), CudaError> {
        let pairs = roles.iter().flat_map(|(from, to)| self.spans(*from).zip(self.spans(*to)));
        let pairs: Vec<(Span, Span)> = pairs.collect();
        let bytes = pairs.first().map_or(0, |(from, _)| from.bytes);
        let at = |span| self.x.memories.pointer(span);
        let ranges: Vec<_> = pairs.iter().map(|(from, to)| (at(*from), at(*to))).collect();
        self.x.kernels.move_rows(self.stream, &ranges, bytes)
    }
}

impl Executor {
    /// Codes `units` of `heads`, keys and values each, to an address and further ones at a distance from head to head.
    /// Planes, their counts and the fault are those of `o`.
    pub(crate) fn pack(
        &self,
        stream: CUstream,
        o: &Operands,
        heads: &[[Pointer; 2]],
        (to, head_stride): (Pointer, u64),
        units: Range<usize>,
    ) -> Result<(), CudaError> {
        let (spec, unit_stride) = (&self.plan.spec, self.unit_bytes());
        if let Some(format) = self.plan.knobs().kv.quantised() {
            let quantise = Quantise { format, heads, units: units.len(), to, unit_stride, head_stride };
            return self.kernels.quantise(stream, &quantise);
        }
        let pack = Pack {
            heads,
            to,
            unit_stride,
            head_stride,
            planes: &self.planes(o)?,
            planes_max: self.plan.layout().planes(spec),
            counts: self.memories.pointer(o.span(Role::PlaneCounts, 0)),
            first_unit: units.start,
            fault: self.memories.mapped(o.span(Role::PackFault, 0))?,
        };
        self.kernels.pack(stream, &pack)
    }

    /// Bytes of the keys and values of a coded unit.
    fn unit_bytes(&self) -> u64 {
        2 * self.plan.knobs().kv.half_bytes(self.plan.spec.head_dim) as u64
    }

    /// Per unit of an op, where kernels find its planes.
    fn planes(&self, o: &Operands) -> Result<Vec<Pointer>, CudaError> {
        let (layout, spec) = (self.plan.layout(), &self.plan.spec);
        let each = (layout.planes(spec) * self.plan.knobs().kv.plane_bytes(spec.head_dim)) as u64;
        let mut planes = Vec::new();
        for span in o.spans(Role::Planes) {
            let first = self.memories.mapped(span)?;
            planes.extend((0..span.bytes / each).map(|unit| first + unit * each));
        }
        Ok(planes)
    }
}

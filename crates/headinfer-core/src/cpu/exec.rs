//! One command on the CPU: its ranges are borrowed from the arenas, then a kernel runs over them.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::coded;
use super::heads::{HeadNorm, Projected};
use super::host::{HostKeys, HostRanges, attend_host};
use super::kernels::{self, Geometry, HeadTask, Isa, KvRows, Product, StateMut, WeightMatrix};
use super::pieces::{Piece, pieces};
use super::{CpuOptions, OpenError};
use crate::backend::BackendError;
use crate::memory::{Grant, Memories};
use crate::model::spec::{LayerTensor, TensorId};
use crate::model::synthetic::{Half, SyntheticKv};
use crate::model::weights::{TensorView, Weights};
use crate::plan::{
    Access, DECODE_ROWS, Heads, NormKind, Op, Operands, Part, Plan, Role, SPLIT, Span, Step, WeightBlock,
    WeightPlace,
};

pub(super) struct Executor {
    pub(super) plan: Arc<Plan>,
    pub(super) memories: Memories,
    weights: Arc<Weights>,
    pool: rayon::ThreadPool,
    pub(super) isa: Isa,
}

/// One piece of a head's K or V.
fn one_span(access: Access, span: Span) -> Operands {
    let mut operands = Operands::default();
    operands.push(Role::Key, access, span);
    operands
}

impl Executor {
    pub(super) fn open(
        plan: Arc<Plan>,
        weights: Arc<Weights>,
        memories: Memories,
        options: &CpuOptions,
    ) -> Result<Self, OpenError> {
        // Attention keeps its converted block of K and V on the worker's stack.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .stack_size(8 << 20)
            .thread_name(|i| format!("cpu-{i}"))
            .build()
            .map_err(|_| OpenError::Threads(options.threads))?;
        let isa = options.isa.unwrap_or_else(Isa::detect);
        let executor = Self { plan, memories, weights, pool, isa };
        executor.clear_pack_fault();
        executor.copy_resident_weights()?;
        Ok(executor)
    }

    pub(super) fn put_ids(&self, ids: &[u32]) {
        let grant = self.memories.grant(self.plan.ids_operand(ids.len()));
        grant.write::<u32>(Role::Ids, 0).copy_from_slice(ids);
    }

    pub(super) fn execute(&self, step: &Step, op: &Op) {
        let grant = self.memories.grant(self.plan.operands(step, op));
        let run = Run { x: self, g: &grant, step };
        match *op {
            Op::Embed => self.pool.install(|| run.embed()),
            Op::FetchWeights { block, part, .. } => {
                self.copy_weights(block, part, grant.write(Role::LayerWeights, 0));
            }
            Op::Norm { layer, kind } => self.pool.install(|| run.norm(layer, kind)),
            Op::Project { layer } => self.pool.install(|| run.project(layer)),
            Op::Pack { layer } => self.pool.install(|| self.pack(step, layer, &grant)),
            Op::Evict { .. } | Op::Fetch { .. } => coded::copy(
                &grant,
                [(Role::Key, Role::KeyTo), (Role::Value, Role::ValueTo), (Role::Units, Role::UnitsTo)],
            ),
            Op::Unpack { .. } => self.pool.install(|| self.unpack(&grant)),
            Op::Attend { layer, heads, part, first, last } => {
                self.pool.install(|| run.attend(layer, heads, part, first, last));
            }
            Op::AttendHost { layer, heads } => self.pool.install(|| run.attend_host(layer, heads)),
            Op::Merge { .. } => run.merge(),
            Op::OutProject { layer } => self.pool.install(|| run.out_project(layer)),
            Op::Mlp { layer, start, end } => self.pool.install(|| run.mlp(layer, end - start)),
            Op::Logits { start, end } => self.pool.install(|| run.logits(start, end)),
        }
    }

    /// Writes a synthetic past of `rows` rows where each head's rows are kept.
    pub(super) fn fill_past(&self, rows: usize, seed: u64) -> Result<(), BackendError> {
        if self.plan.coded() {
            return self.pool.install(|| self.fill_units(rows, seed));
        }
        let spec = &self.plan.spec;
        for (layer, head) in (0..spec.layers).flat_map(|l| (0..spec.kv_heads).map(move |h| (l, h))) {
            let grant = self.memories.grant(self.plan.past_operands(layer, head, rows));
            for (role, half) in [(Role::Key, Half::Key), (Role::Value, Half::Value)] {
                let law = SyntheticKv::new(seed, layer * spec.kv_heads + head, half);
                let mut first = 0;
                for piece in 0..grant.count(role) {
                    let to = grant.write::<u16>(role, piece);
                    self.pool.install(|| law.fill(first, to));
                    first += to.len() as u64;
                }
            }
        }
        Ok(())
    }

    /// K and V of `rows` of the `held` ones from where the plan keeps them to their canonical form.
    pub(super) fn read_rows(&self, rows: Range<usize>, held: usize, to: &mut [u8]) {
        self.pool.install(|| {
            self.plan.rows_into(rows.clone(), to).into_par_iter().for_each(|(span, to)| {
                let grant = self.memories.grant(one_span(Access::Read, span));
                to.copy_from_slice(grant.read(Role::Key, 0));
            });
            if self.plan.coded() {
                self.read_units(&rows, held, to);
            }
        });
    }

    /// K and V of `rows` from their canonical form to where the plan keeps them.
    ///
    /// # Errors
    /// When they cannot be coded.
    pub(super) fn write_rows(&self, rows: Range<usize>, from: &[u8]) -> Result<(), BackendError> {
        let pieces = self.plan.rows_from(rows.clone(), from);
        self.pool.install(|| {
            pieces.into_par_iter().for_each(|(span, from)| {
                let grant = self.memories.grant(one_span(Access::Write, span));
                grant.write(Role::Key, 0).copy_from_slice(from);
            });
            match self.plan.coded() {
                true => self.write_units(&rows, from),
                false => Ok(()),
            }
        })
    }

    fn copy_resident_weights(&self) -> Result<(), OpenError> {
        let spec = &self.plan.spec;
        if self.plan.knobs().weights == WeightPlace::InPlace {
            return Ok(());
        }
        let odd = spec.tensors().into_iter().find(|(id, _)| self.weights.tensor(*id).dtype != spec.dtype);
        if let Some((id, _)) = odd {
            return Err(OpenError::Weights(format!(
                "{id:?} is {} but config.json declares {}: use --weights auto",
                self.weights.tensor(id).dtype.name(),
                spec.dtype.name()
            )));
        }
        for (id, _) in spec.tensors() {
            let grant = self.memories.grant(self.plan.weight_homes(id));
            for home in 0..grant.count(Role::Tensor) {
                grant.write::<u8>(Role::Tensor, home).copy_from_slice(self.weights.tensor(id).bytes);
            }
        }
        Ok(())
    }

    /// A part of a block of weights from where it is mapped.
    fn copy_weights(&self, block: WeightBlock, part: usize, to: &mut [u8]) {
        let range = self.plan.layout().weight_part(block, part);
        let layer = match block {
            WeightBlock::Layer(layer) => layer,
            WeightBlock::Head { start, .. } => {
                let head = self.weights.tensor(self.head());
                let first = start * head.cols * head.dtype.bytes() + range.start as usize;
                to.copy_from_slice(&head.bytes[first..first + to.len()]);
                return;
            }
        };
        for (id, _) in self.plan.spec.tensors() {
            let (TensorId::Layer(l, _), Some((offset, bytes))) = (id, self.plan.layout().weight(id)) else {
                continue;
            };
            let (from, end) = (range.start.max(offset), range.end.min(offset + bytes));
            if l == layer && from < end {
                let within = |at: u64, base: u64| (at - base) as usize;
                let bytes = &self.weights.tensor(id).bytes[within(from, offset)..within(end, offset)];
                to[within(from, range.start)..within(end, range.start)].copy_from_slice(bytes);
            }
        }
    }

    fn head(&self) -> TensorId {
        if self.plan.spec.tied { TensorId::Embed } else { TensorId::LmHead }
    }
}

/// One command with the bytes it may touch.
struct Run<'a> {
    x: &'a Executor,
    g: &'a Grant<'a>,
    step: &'a Step,
}

impl Run<'_> {
    fn embed(&self) {
        let spec = &self.x.plan.spec;
        let (cos, sin) = (self.g.write::<f32>(Role::Cos, 0), self.g.write::<f32>(Role::Sin, 0));
        spec.rope.table(spec.head_dim, self.step.past as u64, self.step.rows, cos, sin);
        let table = self.weight(TensorId::Embed);
        kernels::embed(self.g.read::<u32>(Role::Ids, 0), table, self.g.write::<f32>(Role::Hidden, 0));
    }

    fn norm(&self, layer: usize, kind: NormKind) {
        let tensor = match kind {
            NormKind::Attention => LayerTensor::AttnNorm,
            NormKind::Mlp => LayerTensor::MlpNorm,
        };
        let weight = self.weight(TensorId::Layer(layer, tensor));
        let (from, to) = (self.g.read::<f32>(Role::Hidden, 0), self.g.write::<f32>(Role::Normed, 0));
        kernels::rms_norm(self.x.isa, from, weight, self.x.plan.spec.norm_eps, to);
    }

    fn project(&self, layer: usize) {
        let spec = &self.x.plan.spec;
        let (d, group) = (spec.head_dim, spec.group());
        let width = spec.q_dim() + 2 * spec.kv_dim();
        let scratch = self.g.write::<f32>(Role::Scratch, 0);
        let normed = self.g.read::<f32>(Role::Normed, 0);
        use LayerTensor as T;
        let (key, value) = (spec.q_dim(), spec.q_dim() + spec.kv_dim());
        let parts = [(T::Q, T::QBias, 0), (T::K, T::KBias, key), (T::V, T::VBias, value)];
        let products = parts
            .map(|(weight, bias, column)| self.product(layer, weight, spec.qkv_bias.then_some(bias), column));
        self.linear(normed, &products, scratch, width, false);
        let projected = Projected {
            values: scratch,
            width,
            head_dim: d,
            cos: self.g.read(Role::Cos, 0),
            sin: self.g.read(Role::Sin, 0),
        };
        let norm = |tensor| {
            let weight = || self.weight(TensorId::Layer(layer, tensor));
            spec.qk_norm.then(|| HeadNorm { weight: weight(), eps: spec.norm_eps })
        };
        let host = self.x.plan.host_attended(self.step, layer);
        for head in 0..spec.kv_heads {
            let to = self.g.write::<f32>(Role::Query, head);
            projected.queries(head * group * d, group, norm(T::QNorm), to);
            if host.iter().contains(&head) {
                self.g.write::<f32>(Role::HostQuery, head - host.start).copy_from_slice(to);
            }
            let k = spec.q_dim() + head * d;
            projected.keys(k, norm(T::KNorm), self.g.write(Role::Key, head));
            projected.values(k + spec.kv_dim(), self.g.write(Role::Value, head));
        }
        coded::copy(self.g, [(Role::OpenKey, Role::KeyTo), (Role::OpenValue, Role::ValueTo)]);
    }

    fn attend(&self, layer: usize, heads: Heads, part: Part, first: bool, last: bool) {
        let mut state = StateMut {
            max: self.g.write(Role::StateMax, 0),
            sum: self.g.write(Role::StateSum, 0),
            acc: self.g.write(Role::StateAcc, 0),
        };
        if first {
            kernels::state_init(&mut state);
        }
        let kv = |key, value| {
            let one = |h| (self.g.read::<u16>(key, h), self.g.read::<u16>(value, h));
            (0..self.g.count(key)).map(one).collect::<Vec<_>>()
        };
        let positions = self.x.plan.past_rows(self.step, part);
        let (past, own) = (kv(Role::Key, Role::Value), kv(Role::OwnKey, Role::OwnValue));
        let q = |h: usize| self.g.read::<f32>(Role::Query, h);
        let few = self.step.rows <= DECODE_ROWS;
        let mut partials = few.then(|| self.g.write::<f32>(Role::Partials, 0));
        for piece in pieces(self.step, self.x.plan.spec.head_dim, positions, &past, &own) {
            self.attend_piece(layer, &piece, &q, &mut state, partials.as_deref_mut());
        }
        if last {
            self.finish(heads, &state);
        }
    }

    fn finish(&self, heads: Heads, state: &StateMut<'_>) {
        let spec = &self.x.plan.spec;
        let (d, group, width) = (spec.head_dim, spec.group(), spec.q_dim());
        let rows = self.step.rows * group;
        let out = self.g.write::<f32>(Role::AttnOut, 0);
        for head in heads.iter() {
            let base = (head - heads.start) * rows;
            for row in 0..rows {
                let column = (head * group + row % group) * d;
                let to = &mut out[row / group * width + column..][..d];
                let acc = &state.acc[(base + row) * d..][..d];
                kernels::state_finish(state.sum[base + row], acc, to);
            }
        }
    }

    fn attend_host(&self, layer: usize, heads: Heads) {
        let state = StateMut {
            max: self.g.write(Role::StateMax, 0),
            sum: self.g.write(Role::StateSum, 0),
            acc: self.g.write(Role::StateAcc, 0),
        };
        let plain =
            (0..self.g.count(Role::Key)).map(|k| (self.g.read(Role::Key, k), self.g.read(Role::Value, k)));
        let all = |role| (0..self.g.count(role)).map(|k| self.g.read(role, k)).collect();
        let keys = match self.x.plan.coded() {
            true => HostKeys::Coded { units: all(Role::Units), planes: all(Role::Planes) },
            false => HostKeys::Plain(plain.collect()),
        };
        let ranges = HostRanges {
            queries: (0..heads.len()).map(|h| self.g.read(Role::HostQuery, h)).collect(),
            keys,
            state,
            scratch: self.g.write(Role::Partials, 0),
        };
        attend_host(self.x.isa, &self.x.plan, self.step, layer, ranges);
    }

    fn attend_piece<'s>(
        &self,
        layer: usize,
        piece: &Piece<'_>,
        q: &dyn Fn(usize) -> &'s [f32],
        state: &mut StateMut<'_>,
        partials: Option<&mut [f32]>,
    ) {
        let spec = &self.x.plan.spec;
        let d = spec.head_dim;
        let geometry = Geometry {
            head_dim: d,
            group: spec.group(),
            scale: 1.0 / (d as f32).sqrt(),
            window: spec.windows[layer],
            q_start: self.step.past as u64,
            sees: piece.sees,
        };
        let rows = self.step.rows * spec.group();
        let mut max = state.max.chunks_mut(rows);
        let mut sum = state.sum.chunks_mut(rows);
        let mut acc = state.acc.chunks_mut(rows * d);
        let mut tasks = Vec::with_capacity(piece.kv.len());
        for (h, (k, v)) in piece.kv.iter().enumerate() {
            let (Some(max), Some(sum), Some(acc)) = (max.next(), sum.next(), acc.next()) else { break };
            tasks.push(HeadTask {
                q: q(h),
                kv: KvRows { k, v, start: piece.start as u64 },
                state: StateMut { max, sum, acc },
            });
        }
        match partials {
            Some(scratch) => kernels::attend_decode(self.x.isa, &geometry, SPLIT, &mut tasks, scratch),
            None => kernels::attend_prefill(self.x.isa, &geometry, &mut tasks),
        }
    }

    fn merge(&self) {
        let pairs = [
            (Role::FromMax, Role::StateMax),
            (Role::FromSum, Role::StateSum),
            (Role::FromAcc, Role::StateAcc),
        ];
        for (from, to) in pairs {
            self.g.write::<f32>(to, 0).copy_from_slice(self.g.read::<f32>(from, 0));
        }
    }

    fn out_project(&self, layer: usize) {
        let spec = &self.x.plan.spec;
        let bias = spec.o_bias.then_some(LayerTensor::OBias);
        let (from, to) = (self.g.read::<f32>(Role::AttnOut, 0), self.g.write::<f32>(Role::Hidden, 0));
        self.linear(from, &[self.product(layer, LayerTensor::O, bias, 0)], to, spec.hidden, true);
    }

    fn mlp(&self, layer: usize, rows: usize) {
        let spec = &self.x.plan.spec;
        use LayerTensor as T;
        let normed = self.g.read::<f32>(Role::Normed, 0);
        let scratch = self.g.write::<f32>(Role::Scratch, 0);
        let bias = |tensor| spec.mlp_bias.then_some(tensor);
        let size = rows * spec.intermediate;
        let gate = self.product(layer, T::Gate, bias(T::GateBias), 0);
        let up = self.product(layer, T::Up, bias(T::UpBias), size);
        self.linear(normed, &[gate, up], scratch, spec.intermediate, false);
        let (gate, up) = scratch.split_at_mut(size);
        kernels::swiglu(self.x.isa, gate, up);
        let down = self.product(layer, T::Down, bias(T::DownBias), 0);
        self.linear(gate, &[down], self.g.write::<f32>(Role::Hidden, 0), spec.hidden, true);
    }

    fn logits(&self, start: usize, end: usize) {
        let spec = &self.x.plan.spec;
        let normed = match start {
            0 => {
                let (from, to) = (self.g.read::<f32>(Role::Hidden, 0), self.g.write::<f32>(Role::Normed, 0));
                kernels::rms_norm(self.x.isa, from, self.weight(TensorId::FinalNorm), spec.norm_eps, to);
                &*to
            }
            _ => self.g.read::<f32>(Role::Normed, 0),
        };
        let head = self.head(start, end);
        let out = &mut self.g.write::<f32>(Role::Logits, 0)[start..];
        let head = Product { weight: head, bias: None, at: 0 };
        kernels::linear(self.x.isa, normed, self.step.logit_rows, &[head], out, spec.vocab, false);
    }

    /// Rows `[start, end)` of the output head, where this plan keeps them.
    fn head(&self, start: usize, end: usize) -> WeightMatrix<'_> {
        let TensorView { dtype, cols, bytes, .. } = self.x.weights.tensor(self.x.head());
        let row = cols * dtype.bytes();
        let bytes = match self.g.count(Role::HeadWeights) {
            0 => &bytes[start * row..end * row],
            _ => self.g.read::<u8>(Role::HeadWeights, 0),
        };
        WeightMatrix { dtype, rows: end - start, cols, bytes }
    }

    fn product(
        &self,
        layer: usize,
        tensor: LayerTensor,
        bias: Option<LayerTensor>,
        at: usize,
    ) -> Product<'_> {
        let weight = |tensor| self.weight(TensorId::Layer(layer, tensor));
        Product { weight: weight(tensor), bias: bias.map(weight), at }
    }

    fn linear(
        &self,
        from: &[f32],
        products: &[Product<'_>],
        to: &mut [f32],
        stride: usize,
        accumulate: bool,
    ) {
        let rows = from.len() / products[0].weight.cols;
        kernels::linear(self.x.isa, from, rows, products, to, stride, accumulate);
    }

    /// A weight where this plan keeps it: mapped, resident, or in the layer's slot.
    fn weight(&self, id: TensorId) -> WeightMatrix<'_> {
        let TensorView { dtype, rows, cols, bytes } = self.x.weights.tensor(id);
        let role = match id {
            TensorId::Layer(..) => Role::LayerWeights,
            TensorId::FinalNorm => Role::FinalNorm,
            TensorId::Embed | TensorId::LmHead => Role::Embedding,
        };
        let bytes = match (self.g.count(role), role) {
            (0, _) => bytes,
            (_, Role::LayerWeights) => {
                let (offset, bytes) = self.x.plan.layout().weight(id).expect("a copied tensor has a place");
                &self.g.read::<u8>(role, 0)[offset as usize..(offset + bytes) as usize]
            }
            _ => self.g.read::<u8>(role, 0),
        };
        WeightMatrix { dtype, rows, cols, bytes }
    }
}

//! One command on the GPU: its ranges become addresses, then kernels, products or copies are put on its lane's
//! stream. Nothing here waits.

use std::sync::Arc;

use cudarc::driver::sys::CUstream;
use headinfer_core::model::spec::{LayerTensor, TensorId};
use headinfer_core::plan::{
    DECODE_ROWS, Heads, Memory, NormKind, Op, Operands, Part, Plan, Role, Span, Step, WeightBlock,
    WeightPlace,
};

use crate::arena::{Memories, Pointer};
use crate::error::CudaError;
use crate::gemm::{Gemm, Output, Shape};
use crate::launch::attention_prefill::Attention;
use crate::launch::embed::Angles;
use crate::launch::product;
use crate::launch::project::Projection;
use crate::launch::{Kernels, Start};

pub(crate) struct Executor {
    pub(crate) plan: Arc<Plan>,
    pub(crate) memories: Arc<Memories>,
    pub(crate) kernels: Kernels,
    pub(crate) gemm: Gemm,
    pub(crate) inv_freq: Vec<f64>,
    /// Whether the device starts kernels early.
    pub(crate) early: bool,
}

impl Executor {
    /// With `alone` no event is waited for right before: kernels may then start early, where the device has that.
    pub(crate) fn execute(
        &mut self,
        step: &Step,
        op: &Op,
        stream: CUstream,
        alone: bool,
    ) -> Result<(), CudaError> {
        let operands = self.plan.operands(step, op);
        let plan = self.plan.clone();
        // Products read the first weights before their turn, so these must not be on their way into a slot. A chunk's
        // kernels are long, and its products are cuBLASLt's.
        let early =
            alone && self.early && step.rows <= DECODE_ROWS && plan.knobs().weights == WeightPlace::Resident;
        let mut run =
            Run { x: self, plan: &plan, o: &operands, step, stream, start: Start::new(stream, early) };
        match *op {
            Op::Embed => run.embed(),
            Op::FetchWeights { .. } => run.copy(&[(Role::HostWeights, Role::LayerWeights)]),
            Op::Norm { layer, kind } => run.norm(layer, kind),
            Op::Project { layer } => run.project(layer),
            Op::Evict { .. } | Op::Fetch { .. } => {
                run.copy(&[(Role::Key, Role::KeyTo), (Role::Value, Role::ValueTo)])
            }
            Op::Attend { layer, heads, part, first, last } => run.attend(layer, heads, part, first, last),
            Op::AttendHost { .. } => unreachable!("the Host lane runs it"),
            Op::Merge { .. } => run.merge(),
            Op::OutProject { layer } => run.out_project(layer),
            Op::Mlp { layer, start, end } => run.mlp(layer, end - start),
            Op::Logits { start, end } => run.logits(start, end),
        }
    }

    /// Runs each product of a layer and the head at every size class of rows, on whatever lies in memory, so that
    /// cuBLASLt loads its kernels now and device memory does not grow later.
    pub(crate) fn warm(&mut self, stream: CUstream) -> Result<(), CudaError> {
        let (chunk, mlp_rows, logit_rows) = {
            let k = self.plan.knobs();
            (k.chunk, k.mlp_rows, k.logit_rows)
        };
        let powers = (0..usize::BITS).map(|i| 1 << i).take_while(|rows| *rows < chunk);
        for rows in powers.chain([chunk]) {
            let step = Step { past: 0, rows, logit_rows: rows.min(logit_rows) };
            let mlp = Op::Mlp { layer: 0, start: 0, end: rows.min(mlp_rows) };
            let head = self.plan.layout().head_blocks().filter_map(|block| match block {
                WeightBlock::Head { start, end } => Some(Op::Logits { start, end }),
                WeightBlock::Layer(_) => None,
            });
            let ops = [Op::Project { layer: 0 }, Op::OutProject { layer: 0 }, mlp];
            for op in ops.into_iter().chain(head.collect::<Vec<_>>()) {
                self.execute(&step, &op, stream, false)?;
            }
        }
        Ok(())
    }
}

/// One command with its ranges and its stream.
struct Run<'a> {
    x: &'a mut Executor,
    plan: &'a Plan,
    o: &'a Operands,
    step: &'a Step,
    stream: CUstream,
    /// When kernels start that may do so early.
    start: Start,
}

impl Run<'_> {
    fn embed(&mut self) -> Result<(), CudaError> {
        let spec = &self.plan.spec;
        let angles = Angles {
            cos: self.at(Role::Cos, 0),
            sin: self.at(Role::Sin, 0),
            start: self.step.past as u64,
            rows: self.step.rows,
            inv_freq: &self.x.inv_freq,
            scale: spec.rope.attention_factor(),
        };
        self.x.kernels.rope_table(self.stream, &angles)?;
        let table = self.span(Role::Embedding, 0);
        let table = match table.memory {
            Memory::Device => self.x.memories.pointer(table),
            // A step's rows are few beside the table: they are read in place rather than copied first.
            Memory::Host => self.x.memories.mapped(table)?,
        };
        let ids = (self.at(Role::Ids, 0), self.step.rows);
        self.x.kernels.embed(self.stream, ids, table, self.at(Role::Hidden, 0), spec.hidden)
    }

    /// Copies the ranges of each pair of roles, one after another; neighbours at both ends go as one.
    fn copy(&mut self, roles: &[(Role, Role)]) -> Result<(), CudaError> {
        let pairs = roles.iter().flat_map(|(from, to)| self.spans(*from).zip(self.spans(*to)));
        let mut pairs: Vec<(Span, Span)> = pairs.collect();
        pairs.sort_by_key(|(from, _)| from.offset);
        let mut joined: Vec<(Span, Span)> = Vec::with_capacity(pairs.len());
        for (from, to) in pairs {
            match joined.last_mut() {
                Some((f, t)) if f.offset + f.bytes == from.offset && t.offset + t.bytes == to.offset => {
                    f.bytes += from.bytes;
                    t.bytes += to.bytes;
                }
                _ => joined.push((from, to)),
            }
        }
        joined.into_iter().try_for_each(|(from, to)| self.x.memories.copy(from, to, self.stream))
    }

    fn norm(&mut self, layer: usize, kind: NormKind) -> Result<(), CudaError> {
        let tensor = match kind {
            NormKind::Attention => LayerTensor::AttnNorm,
            NormKind::Mlp => LayerTensor::MlpNorm,
        };
        self.rms_norm(self.weight(TensorId::Layer(layer, tensor)), self.step.rows)
    }

    fn rms_norm(&mut self, weight: Pointer, rows: usize) -> Result<(), CudaError> {
        let spec = &self.plan.spec;
        let (from, weight) = ((self.at(Role::Hidden, 0), rows), (weight, spec.hidden));
        self.x.kernels.rms_norm(self.start, from, weight, self.at(Role::Normed, 0), spec.norm_eps)
    }

    fn project(&mut self, layer: usize) -> Result<(), CudaError> {
        use LayerTensor as T;
        let spec = &self.plan.spec;
        let (normed, scratch) = (self.at(Role::Normed, 0), self.at(Role::Scratch, 0));
        let parts = [(T::Q, spec.q_dim()), (T::K, spec.kv_dim()), (T::V, spec.kv_dim())];
        self.fused(layer, &parts, normed, scratch, self.step.rows)?;
        let bias = |tensor| if spec.qkv_bias { self.weight(TensorId::Layer(layer, tensor)) } else { 0 };
        let norm = |tensor| if spec.qk_norm { self.weight(TensorId::Layer(layer, tensor)) } else { 0 };
        let head = |h| [self.at(Role::Query, h), self.at(Role::Key, h), self.at(Role::Value, h)];
        let heads: Vec<_> = (0..spec.kv_heads).map(head).collect();
        let projection = Projection {
            from: scratch,
            rows: self.step.rows,
            cos: self.at(Role::Cos, 0),
            sin: self.at(Role::Sin, 0),
            biases: [bias(T::QBias), bias(T::KBias), bias(T::VBias)],
            norms: [norm(T::QNorm), norm(T::KNorm)],
            heads: &heads,
            group: spec.group(),
            eps: spec.norm_eps,
        };
        self.x.kernels.project(self.start, &projection)?;
        self.give_queries(layer)
    }

    /// Queries of the heads that the CPU attends to, which lie together at both ends.
    fn give_queries(&mut self, layer: usize) -> Result<(), CudaError> {
        let heads = self.plan.host_attended(self.step, layer);
        if heads.is_empty() {
            return Ok(());
        }
        let to = self.span(Role::HostQuery, 0);
        let to = Span { bytes: to.bytes * heads.len() as u64, ..to };
        let (from, count) = (self.at(Role::Query, heads.start), to.bytes / size_of::<f32>() as u64);
        self.x.kernels.give_queries(self.stream, from, self.x.memories.mapped(to)?, count)
    }

    fn merge(&mut self) -> Result<(), CudaError> {
        let rows = self.span(Role::FromMax, 0).bytes as usize / size_of::<f32>();
        let [max, sum, acc] = [Role::FromMax, Role::FromSum, Role::FromAcc]
            .map(|role| self.x.memories.mapped(self.span(role, 0)));
        let to = [Role::StateMax, Role::StateSum, Role::StateAcc].map(|role| self.at(role, 0));
        self.x.kernels.take_state(self.stream, [max?, sum?, acc?], to, rows)
    }

    fn attend(
        &mut self,
        layer: usize,
        heads: Heads,
        part: Part,
        first: bool,
        last: bool,
    ) -> Result<(), CudaError> {
        let spec = &self.plan.spec;
        let (past, n) = (self.step.past, self.step.rows);
        let own = if part.has_own() { n } else { 0 };
        // A piece without rows declares no operands.
        let at = |role, h| self.spans(role).nth(h).map_or(0, |span| self.x.memories.pointer(span));
        let roles = [Role::Query, Role::Key, Role::Value, Role::OwnKey, Role::OwnValue];
        let pointers: Vec<_> = (0..heads.len()).map(|h| roles.map(|role| at(role, h))).collect();
        let attention = Attention {
            heads: &pointers,
            state: [self.at(Role::StateMax, 0), self.at(Role::StateSum, 0), self.at(Role::StateAcc, 0)],
            out: if last { self.at(Role::AttnOut, 0) } else { 0 },
            out_columns: (spec.q_dim(), heads.start * spec.group() * spec.head_dim),
            tokens: n,
            q_start: past,
            group: spec.group(),
            past: self.plan.past_rows(self.step, part),
            own: past..past + own,
            window: spec.windows[layer],
            first,
            last,
        };
        if n > DECODE_ROWS {
            return self.x.kernels.attention_prefill(self.stream, &attention);
        }
        let partials = self.span(Role::Partials, 0);
        let partials = (self.x.memories.pointer(partials), partials.bytes / 4);
        self.x.kernels.attention_decode(self.start, &attention, partials)
    }

    fn out_project(&mut self, layer: usize) -> Result<(), CudaError> {
        let spec = &self.plan.spec;
        let (from, to) = (self.at(Role::AttnOut, 0), self.at(Role::Hidden, 0));
        let bias = spec.o_bias.then_some(LayerTensor::OBias);
        self.onto_residual(
            layer,
            (LayerTensor::O, bias),
            (from, spec.q_dim(), spec.q_dim()),
            to,
            self.step.rows,
        )
    }

    fn mlp(&mut self, layer: usize, rows: usize) -> Result<(), CudaError> {
        use LayerTensor as T;
        let spec = &self.plan.spec;
        let (normed, scratch) = (self.at(Role::Normed, 0), self.at(Role::Scratch, 0));
        let width = spec.intermediate;
        self.fused(layer, &[(T::Gate, width), (T::Up, width)], normed, scratch, rows)?;
        let bias = |tensor| if spec.mlp_bias { self.weight(TensorId::Layer(layer, tensor)) } else { 0 };
        let biases = (bias(T::GateBias), bias(T::UpBias));
        self.x.kernels.swiglu(self.start, (scratch, rows), width, biases)?;
        let bias = spec.mlp_bias.then_some(T::DownBias);
        self.onto_residual(
            layer,
            (T::Down, bias),
            (scratch, width, 2 * width),
            self.at(Role::Hidden, 0),
            rows,
        )
    }

    fn logits(&mut self, start: usize, end: usize) -> Result<(), CudaError> {
        let spec = &self.plan.spec;
        if start == 0 {
            self.rms_norm(self.at(Role::FinalNorm, 0), self.step.logit_rows)?;
        }
        let shape = Shape {
            rows: self.step.logit_rows,
            out: end - start,
            inner: spec.hidden,
            from_stride: spec.hidden,
            to_stride: spec.vocab,
            to: Output::F32,
        };
        let to = self.at(Role::Logits, 0) + (start * size_of::<f32>()) as u64;
        self.product(shape, self.at(Role::HeadWeights, 0), self.at(Role::Normed, 0), to)
    }

    /// Products of one input with several weights, side by side in the columns of `to`, bf16. Weights that lie one
    /// behind another are one matrix.
    fn fused(
        &mut self,
        layer: usize,
        parts: &[(LayerTensor, usize)],
        from: Pointer,
        to: Pointer,
        rows: usize,
    ) -> Result<(), CudaError> {
        let place = |tensor| {
            self.plan.layout().weight(TensorId::Layer(layer, tensor)).expect("a layer's tensor has a place")
        };
        let mut joined: Vec<(LayerTensor, usize)> = Vec::new();
        let mut end = None;
        for &(tensor, out) in parts {
            let (offset, bytes) = place(tensor);
            match joined.last_mut() {
                Some(last) if end == Some(offset) => last.1 += out,
                _ => joined.push((tensor, out)),
            }
            end = Some(offset + bytes);
        }
        let (inner, width) = (self.plan.spec.hidden, parts.iter().map(|(_, out)| out).sum());
        let mut column = 0;
        for (tensor, out) in joined {
            let shape = Shape { rows, out, inner, from_stride: inner, to_stride: width, to: Output::Bf16 };
            let to = to + column * size_of::<u16>() as u64;
            self.product(shape, self.weight(TensorId::Layer(layer, tensor)), from, to)?;
            column += out as u64;
        }
        Ok(())
    }

    /// A product with `rows` rows of `from` (address, columns, stride), and a bias, added to the residual stream.
    fn onto_residual(
        &mut self,
        layer: usize,
        (tensor, bias): (LayerTensor, Option<LayerTensor>),
        (from, inner, from_stride): (Pointer, usize, usize),
        to: Pointer,
        rows: usize,
    ) -> Result<(), CudaError> {
        let out = self.plan.spec.hidden;
        if let Some(bias) = bias {
            let bias = (self.weight(TensorId::Layer(layer, bias)), out);
            self.x.kernels.add_bias(self.start, (to, rows), bias)?;
        }
        let shape = Shape { rows, out, inner, from_stride, to_stride: out, to: Output::Accumulate };
        self.product(shape, self.weight(TensorId::Layer(layer, tensor)), from, to)
    }

    fn product(&mut self, s: Shape, weight: Pointer, from: Pointer, to: Pointer) -> Result<(), CudaError> {
        if product::fits(&s) {
            return self.x.kernels.product(self.start, s, weight, from, to);
        }
        let workspace = self.at(Role::Workspace, 0);
        self.x.gemm.run(self.stream, s, weight, from, to, workspace)
    }

    /// A layer's weight where this plan keeps it: resident, or in the layer's slot.
    fn weight(&self, id: TensorId) -> Pointer {
        let (offset, bytes) = self.plan.layout().weight(id).expect("a copied tensor has a place");
        let base = self.span(Role::LayerWeights, 0);
        self.x.memories.pointer(Span { offset: base.offset + offset, bytes, ..base })
    }

    fn at(&self, role: Role, k: usize) -> Pointer {
        self.x.memories.pointer(self.span(role, k))
    }

    fn span(&self, role: Role, k: usize) -> Span {
        self.spans(role).nth(k).unwrap_or_else(|| panic!("the command declares no operand {role:?} {k}"))
    }

    fn spans(&self, role: Role) -> impl Iterator<Item = Span> {
        self.o.as_slice().iter().filter(move |o| o.role == role).map(|o| o.span)
    }
}

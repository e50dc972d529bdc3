//! Taking a fused projection apart.

use super::{HEADS_MAX, Kernels, Spread, Start, launch};
use crate::arena::Pointer;
use crate::error::CudaError;

/// Threads of a block.
const THREADS: u32 = 128;
/// Where rows are fewer, several blocks take one, with so many heads each.
const ROWS_ALONE: usize = 64;
const HEADS_SHARED: u32 = 8;

/// As the kernel takes it; see `kernels/project.cu` for shapes.
#[repr(C)]
struct ProjectParams {
    from: Pointer,
    cos: Pointer,
    sin: Pointer,
    q_bias: Pointer,
    k_bias: Pointer,
    v_bias: Pointer,
    q_norm: Pointer,
    k_norm: Pointer,
    query: [Pointer; HEADS_MAX],
    key: [Pointer; HEADS_MAX],
    value: [Pointer; HEADS_MAX],
    width: u32,
    group: u32,
    kv_heads: u32,
    first_head: u32,
    heads: u32,
    eps: f32,
}

/// A fused projection, where its heads go, and what is done on the way. Absent weights are null (0).
pub(crate) struct Projection<'a> {
    pub(crate) from: Pointer,
    pub(crate) rows: usize,
    pub(crate) cos: Pointer,
    pub(crate) sin: Pointer,
    /// Of queries, keys, values.
    pub(crate) biases: [Pointer; 3],
    /// Of queries, keys.
    pub(crate) norms: [Pointer; 2],
    /// Per KV head: queries, keys, values.
    pub(crate) heads: &'a [[Pointer; 3]],
    pub(crate) group: usize,
    pub(crate) eps: f32,
}

impl Kernels {
    /// Writes every head of `p`.
    pub(crate) fn project(&self, start: Start, p: &Projection<'_>) -> Result<(), CudaError> {
        let kv_heads = p.heads.len();
        for (slice, heads) in p.heads.chunks(HEADS_MAX).enumerate() {
            let column = |i: usize| {
                let mut all = [0; HEADS_MAX];
                all.iter_mut().zip(heads).for_each(|(to, head)| *to = head[i]);
                all
            };
            let mut params = ProjectParams {
                from: p.from,
                cos: p.cos,
                sin: p.sin,
                q_bias: p.biases[0],
                k_bias: p.biases[1],
                v_bias: p.biases[2],
                q_norm: p.norms[0],
                k_norm: p.norms[1],
                query: column(0),
                key: column(1),
                value: column(2),
                width: (kv_heads * (p.group + 2) * self.head_dim) as u32,
                group: p.group as u32,
                kv_heads: kv_heads as u32,
                first_head: (slice * HEADS_MAX) as u32,
                heads: heads.len() as u32,
                eps: p.eps,
            };
            let units = (heads.len() * (p.group + 2)) as u32;
            let shares = if p.rows < ROWS_ALONE { units.div_ceil(HEADS_SHARED) } else { 1 };
            let spread = Spread { grid: (p.rows as u32, shares), block: THREADS, shared: 0 };
            // SAFETY: the kernel's layout; the addresses are the op's spans, or null where the kernel looks.
            unsafe { launch(self.project, &spread, start, "project", &mut params) }?;
        }
        Ok(())
    }
}

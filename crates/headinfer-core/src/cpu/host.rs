//! Attention of a step over the past of heads that the CPU attends to where it lies: the op `AttendHost`, for every
//! backend. Must not know whose memory it is.

use super::kernels::{
    Geometry, Isa, Keys, KvRows, PackedRows, PiecedTask, QuantisedRows, Sees, StateMut, attend_decode_pieces,
    state_init,
};
use crate::plan::{Plan, SPLIT, Step};

/// What the op reads and writes, as its operands name it.
pub struct HostRanges<'a> {
    /// Rotated queries of each head, `[rows * group, head_dim]`.
    pub queries: Vec<&'a [f32]>,
    /// K and V of the past.
    pub keys: HostKeys<'a>,
    /// Of all heads, `[heads * rows * group]`; overwritten. Scores are powers of two, as in [`StateMut`].
    pub state: StateMut<'a>,
    /// Partial states.
    pub scratch: &'a mut [f32],
}

/// K and V of heads that lie on the host, in the operands' order.
pub enum HostKeys<'a> {
    /// Per visible tile, per head, per piece of the store: bf16 bits `[rows, head_dim]` each.
    Plain(Vec<(&'a [u16], &'a [u16])>),
    /// Whole units.
    Coded {
        /// Likewise: `[unit][K half | V half]`.
        units: Vec<&'a [u8]>,
        /// Per visible tile, per piece of the store: `[unit][plane]`.
        planes: Vec<&'a [u8]>,
    },
}

/// Attends the rows of `step` to the past of the heads of `ranges`, and to own rows in the split that it ends in, on the
/// threads of the current pool.
///
/// # Panics
/// When `ranges` are not those of the op's operands.
pub fn attend_host(isa: Isa, plan: &Plan, step: &Step, layer: usize, ranges: HostRanges<'_>) {
    let (spec, HostRanges { queries, keys, mut state, scratch }) = (&plan.spec, ranges);
    state_init(&mut state);
    let pieces = match keys {
        HostKeys::Plain(past) => pieces(plan, step, layer, queries.len(), past),
        HostKeys::Coded { units, planes } => coded_pieces(plan, step, layer, queries.len(), (units, planes)),
    };
    let (d, rows) = (spec.head_dim, step.rows * spec.group());
    let states =
        state.max.chunks_mut(rows).zip(state.sum.chunks_mut(rows)).zip(state.acc.chunks_mut(rows * d));
    let mut tasks: Vec<_> = queries
        .into_iter()
        .zip(&pieces)
        .zip(states)
        .map(|((q, pieces), ((max, sum), acc))| PiecedTask { q, pieces, state: StateMut { max, sum, acc } })
        .collect();
    let geometry = Geometry {
        head_dim: d,
        group: spec.group(),
        scale: 1.0 / (d as f32).sqrt(),
        window: spec.windows[layer],
        q_start: step.past as u64,
        sees: Sees::Before,
    };
    attend_decode_pieces(isa, &geometry, SPLIT, &mut tasks, scratch);
}

/// The pieces of each head, with their positions.
fn pieces<'a>(
    plan: &Plan,
    step: &Step,
    layer: usize,
    heads: usize,
    past: Vec<(&'a [u16], &'a [u16])>,
) -> Vec<Vec<Keys<'a>>> {
    let mut pieces = vec![Vec::new(); heads];
    let mut past = past.into_iter();
    for tile in plan.visible_tiles(step, layer) {
        let first = tile * plan.knobs().tile;
        let end = plan.host_rows(step, tile).end;
        for head in &mut pieces {
            let mut start = first;
            while start < end {
                let (k, v) = past.next().expect("the op declares all rows of its tiles");
                head.push(Keys::Plain(KvRows { k, v, start: start as u64 }));
                start += k.len() / plan.spec.head_dim;
            }
        }
    }
    pieces
}

/// As `pieces`, of whole units.
fn coded_pieces<'a>(
    plan: &Plan,
    step: &Step,
    layer: usize,
    heads: usize,
    (units, planes): (Vec<&'a [u8]>, Vec<&'a [u8]>),
) -> Vec<Vec<Keys<'a>>> {
    let mut pieces = vec![Vec::new(); heads];
    let (mut units, mut planes) = (units.into_iter(), planes.into_iter());
    let (size, format) = (plan.layout().piece_rows(), plan.knobs().kv.quantised());
    for tile in plan.visible_tiles(step, layer) {
        let rows = plan.host_rows(step, tile);
        let starts = || rows.clone().step_by(size);
        let planes: Vec<_> = planes.by_ref().take(starts().len()).collect();
        for head in &mut pieces {
            for (piece, start) in starts().enumerate() {
                let planes = planes.get(piece).copied().unwrap_or_default();
                let units = units.next().expect("the op declares all units of its tiles");
                let start = start as u64;
                head.push(match format {
                    Some(format) => Keys::Quantised(QuantisedRows { format, units, start }),
                    None => Keys::Packed(PackedRows { units, planes, start }),
                });
            }
        }
    }
    pieces
}

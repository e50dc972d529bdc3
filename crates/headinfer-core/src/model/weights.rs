//! The weights of a model: every tensor of its spec, mapped from safetensors files or held in memory.
//!
//! Must not know the arithmetic done with them, nor where a backend copies them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rayon::prelude::*;

use crate::dtype::DType;
use crate::model::error::ModelError;
use crate::model::mapping::{FileIdentity, Mapping};
use crate::model::names::checkpoint_name;
use crate::model::spec::{ModelSpec, TensorId};
use crate::model::weights_files;

/// One tensor, little-endian, row by row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorView<'a> {
    /// Element type; may differ between the tensors of one model.
    pub dtype: DType,
    /// Rows; the length of a 1-D tensor.
    pub rows: usize,
    /// Columns; 1 for a 1-D tensor.
    pub cols: usize,
    /// `rows * cols` elements, aligned to the size of one.
    pub bytes: &'a [u8],
}

/// Every tensor that a [`ModelSpec`] lists, with its shape checked.
#[derive(Debug)]
pub struct Weights {
    tensors: HashMap<TensorId, Stored>,
    files: Vec<Mapping>,
    /// For errors: the folder, or the spec's name.
    origin: PathBuf,
    tied: bool,
}

/// A tensor and where its bytes are.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) dtype: DType,
    pub(crate) shape: [usize; 2],
    pub(crate) data: Data,
}

/// Bytes, aligned to their elements in each variant.
#[derive(Debug)]
pub(crate) enum Data {
    Mapped { file: usize, begin: usize, end: usize },
    Bytes(Vec<u8>),
    Halves(Vec<u16>),
    Words(Vec<u32>),
}

impl Data {
    /// Takes owned bytes as they are when aligned for `dtype`, and copies them otherwise.
    fn owned(bytes: Vec<u8>, dtype: DType) -> Data {
        if is_aligned(&bytes, dtype) { Data::Bytes(bytes) } else { Data::copied(&bytes, dtype) }
    }

    /// Copies bytes to aligned memory. `bytes` is a whole number of elements.
    pub(crate) fn copied(bytes: &[u8], dtype: DType) -> Data {
        match dtype.bytes() {
            2 => Data::Halves(bytes.as_chunks().0.iter().map(|&b| u16::from_ne_bytes(b)).collect()),
            _ => Data::Words(bytes.as_chunks().0.iter().map(|&b| u32::from_ne_bytes(b)).collect()),
        }
    }
}

pub(crate) fn is_aligned(bytes: &[u8], dtype: DType) -> bool {
    bytes.as_ptr().align_offset(dtype.bytes()) == 0
}

impl Weights {
    /// Maps `dir/model.safetensors`, or the shards that `dir/model.safetensors.index.json` names. Tensors
    /// that the spec does not list are ignored. A tied model may have its embedding, the output head, or both.
    ///
    /// # Errors
    /// [`ModelError`] naming the file, and the tensor that is missing, has another shape, or a type other
    /// than bf16, f16 and f32, or an output head that is not the embedding that it is tied to.
    pub fn load(dir: &Path, spec: &ModelSpec) -> Result<Weights, ModelError> {
        let (tensors, files) = weights_files::load(dir, spec)?;
        Ok(Weights { tensors, files, origin: dir.into(), tied: spec.tied })
    }

    /// Takes generated tensors, little-endian. Each tensor of the spec must be there once with its exact
    /// size.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] naming the tensor that is missing, repeated, unknown or of another size.
    pub fn from_memory(
        tensors: Vec<(TensorId, DType, Vec<u8>)>,
        spec: &ModelSpec,
    ) -> Result<Weights, ModelError> {
        let owned = |(id, dtype, bytes)| (id, dtype, Data::owned(bytes, dtype));
        Weights::from_data(tensors.into_iter().map(owned), spec)
    }

    pub(crate) fn from_data(
        given: impl Iterator<Item = (TensorId, DType, Data)>,
        spec: &ModelSpec,
    ) -> Result<Weights, ModelError> {
        let origin = PathBuf::from(&spec.name);
        let error = |id, problem: &str| ModelError::tensor(&origin, &checkpoint_name(id), problem);
        let shapes: HashMap<TensorId, [usize; 2]> = spec.tensors().into_iter().collect();
        let mut tensors = HashMap::with_capacity(shapes.len());
        for (id, dtype, data) in given {
            let shape = *shapes.get(&id).ok_or_else(|| error(id, "is not part of the model"))?;
            let (have, want) = (data.bytes(&[]).len(), shape[0] * shape[1] * dtype.bytes());
            if have != want {
                return Err(error(
                    id,
                    &format!("has {have} bytes, {shape:?} of {} has {want}", dtype.name()),
                ));
            }
            if tensors.insert(id, Stored { dtype, shape, data }).is_some() {
                return Err(error(id, "is there twice"));
            }
        }
        match spec.tensors().iter().find(|(id, _)| !tensors.contains_key(id)) {
            Some((id, _)) => Err(error(*id, "is missing")),
            None => Ok(Weights { tensors, files: Vec::new(), origin, tied: spec.tied }),
        }
    }

    /// The tensor `id` of the spec these weights were made for. The output head of a tied model is its
    /// embedding.
    ///
    /// # Panics
    /// When the spec does not list `id`.
    pub fn tensor(&self, id: TensorId) -> TensorView<'_> {
        let id = if self.tied && id == TensorId::LmHead { TensorId::Embed } else { id };
        let stored = self.tensors.get(&id).expect("the spec of these weights lists the tensor");
        let [rows, cols] = stored.shape;
        TensorView { dtype: stored.dtype, rows, cols, bytes: stored.data.bytes(&self.files) }
    }

    /// What the files were when they were opened; empty for weights that came from no file.
    pub(crate) fn file_identities(&self) -> Vec<FileIdentity> {
        self.files.iter().map(Mapping::identity).collect()
    }

    /// Whether they came from files that have not changed for a while: a change within the system's clock tick leaves a
    /// file's times as they were.
    pub(crate) fn are_settled_files(&self) -> bool {
        const WHILE_NS: i128 = 2_000_000_000;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i128);
        let settled = |file: FileIdentity| file.modified_ns.max(file.changed_ns) + WHILE_NS < now;
        !self.files.is_empty() && self.file_identities().into_iter().all(settled)
    }

    /// Bytes of all tensors of the spec.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.data.bytes(&self.files).len() as u64).sum()
    }

    /// Bytes of files mapped, unused tensors and headers included.
    pub fn mapped_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.len() as u64).sum()
    }

    /// Bytes held in memory of our own: generated tensors, and file tensors that were not aligned.
    pub fn owned_bytes(&self) -> u64 {
        let owned = self.tensors.values().filter(|t| !matches!(t.data, Data::Mapped { .. }));
        owned.map(|t| t.data.bytes(&self.files).len() as u64).sum()
    }

    /// Reads every weight once, with all threads, looking for NaN and infinity.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] with the name and the index of the first such element of the first such tensor.
    pub fn check_finite(&self) -> Result<(), ModelError> {
        let mut ids: Vec<_> = self.tensors.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let view = self.tensor(id);
            if let Some(index) = first_non_finite(view) {
                let at = [index / view.cols, index % view.cols];
                let problem = format!("has a value that is not finite at {at:?}");
                return Err(ModelError::tensor(self.origin_of(id), &checkpoint_name(id), problem));
            }
        }
        Ok(())
    }

    /// For errors: the file of a tensor that is mapped.
    fn origin_of(&self, id: TensorId) -> &Path {
        match self.tensors.get(&id).map(|stored| &stored.data) {
            Some(Data::Mapped { file, .. }) => self.files[*file].path(),
            _ => &self.origin,
        }
    }
}

impl Data {
    fn bytes<'a>(&'a self, files: &'a [Mapping]) -> &'a [u8] {
        match self {
            Data::Mapped { file, begin, end } => &files[*file][*begin..*end],
            Data::Bytes(bytes) => bytes,
            Data::Halves(halves) => bytemuck::cast_slice(halves),
            Data::Words(words) => bytemuck::cast_slice(words),
        }
    }
}

/// Elements looked at by one task.
const CHECK_CHUNK: usize = 1 << 18;

/// A value is not finite when all bits of its exponent are set.
fn first_non_finite(view: TensorView<'_>) -> Option<usize> {
    fn first<T: Copy + Sync>(all: &[T], bad: impl Fn(T) -> bool + Sync) -> Option<usize> {
        all.par_chunks(CHECK_CHUNK).enumerate().find_map_first(|(chunk, values)| {
            // One flag over the chunk keeps the loop free of branches; the index is sought only when it is
            // set.
            let any = values.iter().fold(false, |any, &v| any | bad(v));
            let within = || values.iter().position(|&v| bad(v));
            if any { within().map(|i| chunk * CHECK_CHUNK + i) } else { None }
        })
    }
    let halves = || bytemuck::cast_slice::<u8, u16>(view.bytes);
    match view.dtype {
        DType::Bf16 => first(halves(), |v| v & 0x7f80 == 0x7f80),
        DType::F16 => first(halves(), |v| v & 0x7c00 == 0x7c00),
        DType::F32 => first(bytemuck::cast_slice::<u8, u32>(view.bytes), |v| v & 0x7f80_0000 == 0x7f80_0000),
    }
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;

//! Finds the tensors of a spec in a folder of safetensors files.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::dtype::DType;
use crate::model::error::{ModelError, printable};
use crate::model::json::{parse_object, read_text};
use crate::model::mapping::Mapping;
use crate::model::names::{checkpoint_name, is_vector};
use crate::model::safetensors::{Entry, parse_header};
use crate::model::spec::{ModelSpec, TensorId};
use crate::model::weights::{Data, Stored, is_aligned};

pub(crate) const SINGLE_FILE: &str = "model.safetensors";
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// A mapped file and its header.
struct Shard {
    path: PathBuf,
    map: Mapping,
    entries: BTreeMap<String, Entry>,
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, ModelError> {
        let map = Mapping::open(&path)?;
        let entries = parse_header(&map).map_err(|problem| ModelError::file(&path, problem))?;
        Ok(Shard { path, map, entries })
    }

    /// Type, shape and bytes of a tensor.
    fn content(&self, name: &str) -> Option<(&str, &[u64], &[u8])> {
        let entry = self.entries.get(name)?;
        Some((&entry.dtype, &entry.shape, &self.map[entry.begin as usize..entry.end as usize]))
    }
}

/// The files of a folder that hold wanted tensors.
struct Checkpoint {
    shards: Vec<Shard>,
    /// `None` where one file holds all.
    index: Option<Index>,
}

/// What an index says of the wanted tensors.
struct Index {
    path: PathBuf,
    /// Number of the shard of each.
    place: HashMap<String, usize>,
}

type Loaded = (HashMap<TensorId, Stored>, Vec<Mapping>);

/// As transformers does, a single file is preferred to an index beside it.
pub(crate) fn load(dir: &Path, spec: &ModelSpec) -> Result<Loaded, ModelError> {
    let mut wanted: Vec<_> =
        spec.tensors().into_iter().map(|(id, shape)| (id, checkpoint_name(id), shape)).collect();
    let head = spec.tied.then(|| checkpoint_name(TensorId::LmHead));
    let names = wanted.iter().map(|(_, name, _)| name.as_str()).chain(head.as_deref());
    let files = Checkpoint::open(dir, names)?;
    for (id, name, _) in wanted.iter_mut().filter(|(id, ..)| spec.tied && *id == TensorId::Embed) {
        *name = files.tied_name(*id)?;
    }
    let place = |name| files.find(name).ok_or_else(|| files.missing(name));
    let numbers: Vec<usize> = wanted.iter().map(|(_, name, _)| place(name)).collect::<Result<_, _>>()?;
    files.refuse_disagreement()?;
    let mut tensors = HashMap::with_capacity(wanted.len());
    for ((id, name, shape), number) in wanted.iter().zip(numbers) {
        tensors.insert(*id, view(&files.shards[number], number, *id, name, *shape)?);
    }
    Ok((tensors, files.shards.into_iter().map(|s| s.map).collect()))
}

/// Element type of the embedding, where the folder has one that can be read.
pub(crate) fn stored_dtype(dir: &Path) -> Option<DType> {
    let [embed, head] = [TensorId::Embed, TensorId::LmHead].map(checkpoint_name);
    let files = Checkpoint::open(dir, [embed.as_str(), &head].into_iter()).ok()?;
    let entry = [embed, head].iter().find_map(|name| files.entry(name))?;
    dtype_of(entry)
}

impl Checkpoint {
    /// Opens `dir/model.safetensors`, or the shards that the index names for those `wanted` that it has.
    fn open<'a>(dir: &Path, wanted: impl Iterator<Item = &'a str>) -> Result<Self, ModelError> {
        let (single, path) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
        if single.exists() {
            return Ok(Checkpoint { shards: vec![Shard::open(single)?], index: None });
        }
        if !path.exists() {
            let problem = format!("has neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors are read");
            return Err(ModelError::file(dir, problem));
        }
        let files = read_index(&path)?;
        let (mut shards, mut numbers, mut place) = (Vec::new(), HashMap::new(), HashMap::new());
        for (name, file) in wanted.filter_map(|name| Some((name, files.get(name)?))) {
            let number = match numbers.get(file) {
                Some(&number) => number,
                None => {
                    shards.push(Shard::open(dir.join(file))?);
                    numbers.insert(file, shards.len() - 1);
                    shards.len() - 1
                }
            };
            place.insert(name.to_owned(), number);
        }
        Ok(Checkpoint { shards, index: Some(Index { path, place }) })
    }

    /// The number of the file that has the tensor.
    fn find(&self, name: &str) -> Option<usize> {
        match &self.index {
            Some(index) => index.place.get(name).copied(),
            None => self.shards[0].entries.contains_key(name).then_some(0),
        }
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.shards[self.find(name)?].entries.get(name)
    }

    fn missing(&self, name: &str) -> ModelError {
        let path = self.index.as_ref().map_or_else(|| self.shards[0].path.as_path(), |index| &index.path);
        ModelError::tensor(path, name, "is missing")
    }

    /// The shard that the index names must have the tensor, and no other may.
    fn refuse_disagreement(&self) -> Result<(), ModelError> {
        let Some(Index { path, place }) = &self.index else { return Ok(()) };
        let mut names: Vec<_> = place.iter().collect();
        names.sort_unstable();
        for (name, &number) in names {
            for (i, shard) in self.shards.iter().enumerate() {
                if shard.entries.contains_key(name) == (i == number) {
                    continue;
                }
                let how = match i == number {
                    true => "is not in this file, though the index says so",
                    false => "is also here",
                };
                return Err(ModelError::tensor(&shard.path, name, format!("{how} ({})", path.display())));
            }
        }
        Ok(())
    }

    /// The name under which a tied embedding is stored: its own or that of the output head. Where both are, they must be
    /// the same: transformers 4 would use the first of two different ones, transformers 5 both.
    fn tied_name(&self, embed: TensorId) -> Result<String, ModelError> {
        let (own, head) = (checkpoint_name(embed), checkpoint_name(TensorId::LmHead));
        let (a, b) = match (self.find(&own), self.find(&head)) {
            (Some(a), Some(b)) => (&self.shards[a], &self.shards[b]),
            (None, Some(_)) => return Ok(head),
            (_, None) => return Ok(own),
        };
        if a.content(&own) == b.content(&head) {
            return Ok(own);
        }
        let problem = format!(
            "differs from `{own}`, though config.json ties the two: set its `tie_word_embeddings` to false to use both"
        );
        Err(ModelError::tensor(&b.path, &head, problem))
    }
}

/// The shard of each tensor. Shards must be plain names of files in the folder of the index.
pub(crate) fn read_index(path: &Path) -> Result<HashMap<String, String>, ModelError> {
    let map = parse_object(&read_text(path)?, path)?;
    let Some(Value::Object(weights)) = map.get("weight_map") else {
        return Err(ModelError::field(path, "weight_map", "must be an object of file names"));
    };
    let mut index = HashMap::with_capacity(weights.len());
    for (tensor, file) in weights {
        match file.as_str() {
            Some(file) if is_plain_name(file) => index.insert(tensor.clone(), file.to_owned()),
            _ => {
                let field = format!("weight_map.{}", printable(tensor));
                let problem = format!("is {}, must name a file of this folder", printable(&file.to_string()));
                return Err(ModelError::field(path, &field, problem));
            }
        };
    }
    Ok(index)
}

/// Whether a name from outside is one component and cannot leave its folder.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0', ':'])
}

fn view(
    shard: &Shard,
    number: usize,
    id: TensorId,
    name: &str,
    shape: [usize; 2],
) -> Result<Stored, ModelError> {
    let error = |problem: String| ModelError::tensor(&shard.path, name, problem);
    let entry = shard.entries.get(name).ok_or_else(|| error("is missing".into()))?;
    let dtype = dtype_of(entry)
        .ok_or_else(|| error(format!("has type {}, must be BF16, F16 or F32", printable(&entry.dtype))))?;
    let dims = if is_vector(id) { &shape[..1] } else { &shape[..] };
    if !entry.shape.iter().copied().eq(dims.iter().map(|&d| d as u64)) {
        return Err(error(format!("has shape {:?}, config.json makes it {dims:?}", brief(&entry.shape))));
    }
    let (have, want) = (entry.end - entry.begin, (shape[0] * shape[1] * dtype.bytes()) as u64);
    if have != want {
        return Err(error(format!("has {have} bytes, its shape and type need {want}")));
    }
    let (begin, end) = (entry.begin as usize, entry.end as usize);
    let bytes = &shard.map[begin..end];
    let data = if is_aligned(bytes, dtype) {
        Data::Mapped { file: number, begin, end }
    } else {
        Data::copied(bytes, dtype)
    };
    Ok(Stored { dtype, shape, data })
}

fn dtype_of(entry: &Entry) -> Option<DType> {
    match entry.dtype.as_str() {
        "BF16" => Some(DType::Bf16),
        "F16" => Some(DType::F16),
        "F32" => Some(DType::F32),
        _ => None,
    }
}

/// A shape short enough for one line.
fn brief(shape: &[u64]) -> &[u64] {
    &shape[..shape.len().min(8)]
}

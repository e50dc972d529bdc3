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
}

type Loaded = (HashMap<TensorId, Stored>, Vec<Mapping>);

/// As transformers does, a single file is preferred to an index beside it.
pub(crate) fn load(dir: &Path, spec: &ModelSpec) -> Result<Loaded, ModelError> {
    let wanted: Vec<_> =
        spec.tensors().into_iter().map(|(id, shape)| (id, checkpoint_name(id), shape)).collect();
    let names = wanted.iter().map(|(_, name, _)| name.as_str());
    let (shards, place) = open_shards(dir, names)?;
    let mut tensors = HashMap::with_capacity(wanted.len());
    for (id, name, shape) in &wanted {
        let number = place.get(name.as_str()).copied().unwrap_or(0);
        let stored = view(&shards[number], number, *id, name, *shape)?;
        tensors.insert(*id, stored);
    }
    Ok((tensors, shards.into_iter().map(|s| s.map).collect()))
}

/// All files that hold wanted tensors, at least one, and the number of the file of each wanted tensor (0 for
/// a single file).
fn open_shards<'a>(
    dir: &Path,
    wanted: impl Iterator<Item = &'a str>,
) -> Result<(Vec<Shard>, HashMap<&'a str, usize>), ModelError> {
    let index_path = dir.join(INDEX_FILE);
    if dir.join(SINGLE_FILE).exists() {
        return Ok((vec![Shard::open(dir.join(SINGLE_FILE))?], HashMap::new()));
    }
    if !index_path.exists() {
        let problem = format!("has neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors are read");
        return Err(ModelError::file(dir, problem));
    }
    let index = read_index(&index_path)?;
    let (mut shards, mut numbers, mut place) = (Vec::new(), HashMap::new(), HashMap::new());
    for name in wanted {
        let missing = || ModelError::tensor(&index_path, name, "is missing");
        let file = index.get(name).ok_or_else(missing)?;
        let number = match numbers.get(file) {
            Some(&number) => number,
            None => {
                shards.push(Shard::open(dir.join(file))?);
                numbers.insert(file, shards.len() - 1);
                shards.len() - 1
            }
        };
        place.insert(name, number);
    }
    refuse_disagreement(&shards, &place, &index_path)?;
    Ok((shards, place))
}

/// The shard that the index names must have the tensor, and no other may.
fn refuse_disagreement(
    shards: &[Shard],
    place: &HashMap<&str, usize>,
    index_path: &Path,
) -> Result<(), ModelError> {
    let mut names: Vec<_> = place.iter().collect();
    names.sort_unstable();
    for (name, &number) in names {
        for (i, shard) in shards.iter().enumerate() {
            if shard.entries.contains_key(*name) == (i == number) {
                continue;
            }
            let how =
                if i == number { "is not in this file, though the index says so" } else { "is also here" };
            let problem = format!("{how} ({})", index_path.display());
            return Err(ModelError::tensor(&shard.path, name, problem));
        }
    }
    Ok(())
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
    let dtype = match entry.dtype.as_str() {
        "BF16" => DType::Bf16,
        "F16" => DType::F16,
        "F32" => DType::F32,
        other => return Err(error(format!("has type {}, must be BF16, F16 or F32", printable(other)))),
    };
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

/// A shape short enough for one line.
fn brief(shape: &[u64]) -> &[u64] {
    &shape[..shape.len().min(8)]
}

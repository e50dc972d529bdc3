//! Writes a safetensors file as its values come, so that they are never all in memory.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

/// A tensor of the file: name, type as the format names it, bytes of one element, shape.
pub(crate) struct Tensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: &'a str,
    pub(crate) shape: &'a [usize],
}

/// Writes the header; the tensors' values, 4 bytes each, follow in the same order.
///
/// # Errors
/// What the writer says.
pub(crate) fn header(out: &mut impl Write, tensors: &[Tensor<'_>]) -> io::Result<()> {
    let mut map = Map::new();
    let mut begin = 0;
    for tensor in tensors {
        let end = begin + 4 * tensor.shape.iter().map(|n| *n as u64).product::<u64>();
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]});
        map.insert(tensor.name.to_owned(), entry);
        begin = end;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)
}

/// Writes values, little-endian.
///
/// # Errors
/// What the writer says.
pub(crate) fn values(out: &mut impl Write, values: &[f32]) -> io::Result<()> {
    values.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use headinfer_core::model::safetensors::parse_header;

    #[test]
    fn what_is_written_reads_back() {
        let mut file = Vec::new();
        let a = Tensor { name: "a", dtype: "F32", shape: &[2, 1] };
        let b = Tensor { name: "b", dtype: "I32", shape: &[1] };
        header(&mut file, &[a, b]).unwrap();
        values(&mut file, &[1.0, 2.0]).unwrap();
        file.extend(7i32.to_le_bytes());
        let entries = parse_header(&file).unwrap();
        assert_eq!((entries["a"].shape.as_slice(), entries["b"].dtype.as_str()), (&[2, 1][..], "I32"));
        assert_eq!(entries["a"].begin % 8, 0);
        assert_eq!(file[entries["b"].begin as usize..], 7i32.to_le_bytes());
    }
}

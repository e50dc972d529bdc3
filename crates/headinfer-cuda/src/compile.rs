//! Kernels from source to device code: NVRTC at start, and a cache of its output on disk.
//!
//! A unit is one file of `kernels/` with the texts it needs before it and its definitions. Needs no GPU.

use std::ffi::{CString, c_char, c_int};
use std::io::Write;
use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result, sys};
use headinfer_core::plan::SPLIT;

use crate::error::{CudaError, Named, Version};
use crate::launch::attention_prefill::{PrefillKernel, Tiling};
use crate::launch::attention_prefill_hopper::Hopper;
use crate::libraries;

const PRELUDE: &str = include_str!("kernels/prelude.cuh");
const ATTENTION: &str = include_str!("kernels/attention.cuh");
const ATTENTION_ROWS: &str = include_str!("kernels/attention_rows.cuh");

/// One file of kernels and how it is compiled.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The file's name without its extension.
    pub name: &'static str,
    sources: Vec<&'static str>,
    defines: Vec<String>,
}

/// What NVRTC made of a unit.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Device code of one architecture.
    pub cubin: Vec<u8>,
    /// The assembler's report: registers, shared memory and spills of each kernel.
    pub log: String,
}

/// All kernels for heads of `head_dim` elements, prefill attention by `prefill`.
pub fn units(head_dim: usize, prefill: &PrefillKernel) -> Vec<Unit> {
    let plain = |name, text| Unit { name, sources: vec![PRELUDE, text], defines: Vec::new() };
    let head_dim = format!("HEAD_DIM={head_dim}");
    let decode = Unit {
        name: "attention_decode",
        sources: vec![PRELUDE, ATTENTION, include_str!("kernels/attention_decode.cu")],
        defines: vec![head_dim.clone(), format!("SPLIT={SPLIT}")],
    };
    let of_heads = |name, text| Unit { defines: vec![head_dim.clone()], ..plain(name, text) };
    let project = of_heads("project", include_str!("kernels/project.cu"));
    let pack = of_heads("pack", include_str!("kernels/pack.cu"));
    let unpack = of_heads("unpack", include_str!("kernels/unpack.cu"));
    let quantise = of_heads("quantise", include_str!("kernels/quantise.cu"));
    let dequantise = of_heads("dequantise", include_str!("kernels/dequantise.cu"));
    let text = match prefill {
        PrefillKernel::Portable(_) => include_str!("kernels/attention_prefill.cu"),
        PrefillKernel::Hopper(_) => include_str!("kernels/attention_prefill_hopper.cu"),
    };
    let prefill = Unit {
        name: prefill.name(),
        sources: vec![PRELUDE, ATTENTION, ATTENTION_ROWS, text],
        defines: [vec![head_dim.clone()], prefill.defines()].concat(),
    };
    vec![
        plain("embed", include_str!("kernels/embed.cu")),
        plain("norm", include_str!("kernels/norm.cu")),
        plain("product", include_str!("kernels/product.cu")),
        project,
        plain("swiglu", include_str!("kernels/swiglu.cu")),
        plain("bias", include_str!("kernels/bias.cu")),
        plain("random_weights", include_str!("kernels/random_weights.cu")),
        plain("delay", include_str!("kernels/delay.cu")),
        plain("host", include_str!("kernels/host.cu")),
        plain("rows", include_str!("kernels/rows.cu")),
        pack,
        unpack,
        quantise,
        dequantise,
        prefill,
        decode,
    ]
}

impl PrefillKernel {
    fn defines(&self) -> Vec<String> {
        match *self {
            Self::Portable(Tiling { warps, row_tiles, stages, query_shared, blocks }) => vec![
                format!("WARPS={warps}"),
                format!("ROW_TILES={row_tiles}"),
                format!("STAGES={stages}"),
                format!("QUERY_SHARED={}", query_shared as u8),
                format!("BLOCKS={blocks}"),
            ],
            Self::Hopper(Hopper { keys, stages, consumers, in_turns }) => vec![
                "TENSOR_MAPS".into(),
                format!("KEYS={keys}"),
                format!("STAGES={stages}"),
                format!("CONSUMERS={consumers}"),
                format!("IN_TURNS={}", in_turns as u8),
            ],
        }
    }
}

/// Whether NVRTC can be loaded.
pub fn present() -> bool {
    libraries::check_nvrtc().is_ok()
}

/// Version of NVRTC, which must be [`present`].
///
/// # Errors
/// [`CudaError::Call`] when it refuses.
pub fn version() -> Result<Version, CudaError> {
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    // SAFETY: writes two integers.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().named("nvrtcVersion")?;
    Ok(Version { major: major as u32, minor: minor as u32 })
}

impl Unit {
    fn source(&self) -> String {
        self.sources.concat()
    }

    fn options(&self, arch: &str) -> Vec<String> {
        let mut options = vec![
            format!("--gpu-architecture={arch}"),
            "--std=c++17".into(),
            "--device-as-default-execution-space".into(),
            "--ptxas-options=-v".into(),
        ];
        options.extend(self.defines.iter().map(|d| format!("--define-macro={d}")));
        options
    }

    /// Compiles for `arch`, as in `sm_90a`. NVRTC must be [`present`].
    ///
    /// # Errors
    /// [`CudaError::Compile`] with the first error of the log.
    pub fn compile(&self, arch: &str) -> Result<Compiled, CudaError> {
        let text = |text: String| CString::new(text).map_err(|_| self.fails(arch, "a NUL in the source"));
        let (source, name) = (text(self.source())?, text(format!("{}.cu", self.name))?);
        let program = Program(result::create_program(&source, Some(&name)).named("nvrtcCreateProgram")?);
        let options = self.options(arch);
        // SAFETY: the program is alive.
        let compiled = unsafe { result::compile_program(program.0, &options) };
        let log = program.log()?;
        if let Err(error) = compiled {
            let line = log.lines().find(|l| l.contains("error")).map(str::to_owned);
            return Err(self.fails(arch, &line.unwrap_or_else(|| format!("{:?}", error.0))));
        }
        Ok(Compiled { cubin: program.cubin()?, log })
    }

    fn fails(&self, arch: &str, log: &str) -> CudaError {
        CudaError::Compile { unit: self.name.into(), arch: arch.into(), log: log.trim().into() }
    }

    /// Device code from the cache in `dir`, or compiled and put there. What cannot be cached is only slower.
    pub(crate) fn cubin(
        &self,
        arch: &str,
        driver: Version,
        dir: Option<&Path>,
    ) -> Result<Vec<u8>, CudaError> {
        let Some(dir) = dir else { return Ok(self.compile(arch)?.cubin) };
        let path = self.cache_path(arch, driver, dir)?;
        if let Some(cubin) = read_cached(&path) {
            return Ok(cubin);
        }
        let cubin = self.compile(arch)?.cubin;
        // A full or read-only disk must not stop a run.
        let _ = write_cached(&path, &cubin);
        Ok(cubin)
    }

    fn cache_path(&self, arch: &str, driver: Version, dir: &Path) -> Result<PathBuf, CudaError> {
        let nvrtc = version()?;
        let key = format!("{}\0{:?}\0{nvrtc}\0{driver}", self.source(), self.options(arch));
        Ok(dir.join(format!("{}-{arch}-{:032x}.cubin", self.name, fingerprint(key.as_bytes()))))
    }
}

/// An NVRTC program, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> Result<String, CudaError> {
        // SAFETY: the program is alive.
        let log = unsafe { result::get_program_log(self.0) }.named("nvrtcGetProgramLog")?;
        let bytes: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|c| *c != 0).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>, CudaError> {
        let mut bytes = 0;
        // SAFETY: the program is alive; writes one size.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &mut bytes) }.result().named("nvrtcGetCUBINSize")?;
        let mut cubin = vec![0u8; bytes];
        // SAFETY: the buffer has the size that NVRTC asked for.
        unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast::<c_char>()) }
            .result()
            .named("nvrtcGetCUBIN")?;
        Ok(cubin)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by `create_program` and destroyed once.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// A cached cubin is preceded by its fingerprint, so that a torn or damaged file is compiled again.
fn read_cached(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let (mark, cubin) = bytes.split_first_chunk::<16>()?;
    let whole = u128::from_le_bytes(*mark) == fingerprint(cubin);
    whole.then(|| bytes.split_off(16))
}

fn write_cached(path: &Path, cubin: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    // Two processes may start at once: each writes a file of its own, and renaming is atomic.
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let mut file = std::fs::File::create(&partial)?;
    file.write_all(&fingerprint(cubin).to_le_bytes())?;
    file.write_all(cubin)?;
    drop(file);
    std::fs::rename(&partial, path)
}

/// FNV-1a with 128 bits.
fn fingerprint(bytes: &[u8]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_fnv_1a() {
        // Test vectors of the FNV specification (draft-eastlake-fnv).
        assert_eq!(fingerprint(b""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(fingerprint(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn a_damaged_cache_entry_is_not_used() {
        let dir = std::env::temp_dir().join(format!("headinfer-cubin-{}", std::process::id()));
        let path = dir.join("unit-sm_80-0.cubin");
        write_cached(&path, b"device code").unwrap();
        assert_eq!(read_cached(&path).as_deref(), Some(b"device code".as_slice()));
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read_cached(&path), None);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(read_cached(&path), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

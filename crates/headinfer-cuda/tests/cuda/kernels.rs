//! What the compiler says of every kernel, for every architecture: needs NVRTC and no GPU.

use headinfer_cuda::{PrefillKernel, compile};

/// Architectures of data centre and consumer cards, and the shared memory a block of them may have.
const ARCHITECTURES: [(&str, u32); 4] =
    [("sm_80", 163 << 10), ("sm_89", 99 << 10), ("sm_90a", 227 << 10), ("sm_120", 99 << 10)];

/// The kernels that a device of `arch` may be given for prefill attention.
fn prefills(arch: &str, head_dim: usize, shared: u32) -> Vec<PrefillKernel> {
    let mut all =
        [false, arch == "sm_90a"].map(|hopper| PrefillKernel::new(head_dim, hopper, shared)).to_vec();
    all.dedup();
    all
}

/// Whether NVRTC can be loaded. `HEADINFER_NVRTC=required` makes its absence a failure.
fn has_nvrtc() -> bool {
    let required = std::env::var("HEADINFER_NVRTC").is_ok_and(|v| v == "required");
    assert!(compile::present() || !required, "no NVRTC on LD_LIBRARY_PATH");
    if !compile::present() {
        eprintln!("skipped: no NVRTC");
    }
    compile::present()
}

/// One kernel as the assembler reports it.
struct Resources {
    name: String,
    registers: u32,
    spilled: u32,
    /// Bytes of local memory, spilled registers among them: what else is there was meant for registers.
    stack: u32,
}

/// The number before `word` in a line, 0 when it is not there.
fn number_before(line: &str, word: &str) -> u32 {
    let before = line.split(word).next().filter(|before| before.len() < line.len());
    before.and_then(|b| b.split_whitespace().last()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn resources(log: &str) -> Vec<Resources> {
    let mut all: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            all.push(Resources { name, registers: 0, spilled: 0, stack: 0 });
        }
        let Some(last) = all.last_mut() else { continue };
        last.spilled += number_before(line, " bytes spill stores");
        last.stack += number_before(line, " bytes stack frame");
        last.registers = last.registers.max(number_before(line, " registers"));
    }
    all
}

#[test]
fn kernels_compile_for_every_architecture_and_spill_nothing() {
    if !has_nvrtc() {
        return;
    }
    for (arch, shared) in ARCHITECTURES {
        for head_dim in [64, 96, 128, 256] {
            let units =
                prefills(arch, head_dim, shared).into_iter().flat_map(|p| compile::units(head_dim, &p));
            for unit in units {
                let by_head = ["attention", "project"].iter().any(|name| unit.name.starts_with(name))
                    || ["pack", "quantise"].iter().any(|end| unit.name.ends_with(end));
                if head_dim != 64 && !by_head {
                    continue; // does not depend on it
                }
                let compiled = unit.compile(arch).unwrap_or_else(|error| panic!("{error}"));
                assert!(compiled.cubin.starts_with(b"\x7fELF"), "{arch} {}", unit.name);
                // Products that wait for one another (wgmma).
                assert!(!compiled.log.contains("Performance Loss"), "{}", compiled.log);
                let kernels = resources(&compiled.log);
                assert!(!kernels.is_empty(), "no report for {}: {}", unit.name, compiled.log);
                for Resources { name, registers, spilled, stack } in kernels {
                    eprintln!(
                        "{arch:<7} d {head_dim:<4} {name:<18} {registers:>4} registers {spilled:>4} B spilled"
                    );
                    // Decode waits for memory: with the widest head a few spilled bytes cost it nothing measurable.
                    let few = name == "attention_decode" && head_dim > 128 && spilled < 128;
                    // The range of a sine's argument is reduced in local memory.
                    let stack = if name == "rope_table" { 0 } else { stack };
                    assert!(
                        (spilled == 0 && stack == 0) || few,
                        "{arch} {head_dim} {name}: {stack} B of stack"
                    );
                }
            }
        }
    }
}

#[test]
fn a_kernel_that_does_not_compile_says_so_in_a_line() {
    if !has_nvrtc() {
        return;
    }
    let unit = &compile::units(64, &PrefillKernel::new(64, false, 99 << 10))[0];
    let error = unit.compile("sm_1").unwrap_err().to_string();
    assert!(error.contains("sm_1") && !error.contains('\n'), "{error}");
}

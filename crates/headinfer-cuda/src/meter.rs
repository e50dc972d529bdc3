//! How much of a device this process uses, its context included.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::nvml::Nvml;

/// Contexts of this process, by device.
static HELD: Mutex<BTreeMap<usize, Held>> = Mutex::new(BTreeMap::new());

#[derive(Clone, Copy, Default)]
struct Held {
    contexts: usize,
    /// Bytes in use on the device before the first of them was made.
    before: Option<u64>,
}

/// Measures one device while a context of it is held.
pub(crate) struct Meter {
    ordinal: usize,
    nvml: Option<Nvml>,
    before: Option<u64>,
    first: bool,
}

impl Meter {
    /// To be made before the context, for the device with this number and PCI address.
    pub(crate) fn new(ordinal: usize, pci: &str) -> Self {
        let nvml = Nvml::open(pci);
        let mut all = held();
        let held = all.entry(ordinal).or_default();
        if held.contexts == 0 {
            held.before = nvml.as_ref().and_then(Nvml::device_bytes);
        }
        held.contexts += 1;
        Self { ordinal, nvml, before: held.before, first: held.contexts == 1 }
    }

    /// Bytes that this process uses: as told for it; else what the device has in use beyond what it had before this
    /// process's first context, which counts what others took since. `None` without NVML.
    pub(crate) fn process_bytes(&self) -> Option<u64> {
        let nvml = self.nvml.as_ref()?;
        nvml.process_bytes().or_else(|| Some(nvml.device_bytes()?.saturating_sub(self.before?)))
    }

    /// Bytes of the context when nothing was allocated yet; `None` also when this process had another before.
    pub(crate) fn context_bytes(&self) -> Option<u64> {
        self.process_bytes().filter(|_| self.first)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(held) = held().get_mut(&self.ordinal) {
            held.contexts -= 1;
        }
    }
}

fn held() -> MutexGuard<'static, BTreeMap<usize, Held>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

//! `headinfer plan`: whether and how a context fits.

use anyhow::Result;
use headinfer_core::plan::paper::PaperLayout;
use headinfer_core::plan::report::PlanReport;
use headinfer_core::plan::{Plan, PlanError, Request};
use headinfer_core::units::Bytes;
use serde::Serialize;
use serde_json::json;

use crate::args::{DeviceChoice, Environment, PlanArgs};
use crate::model_source::ModelSource;
use crate::{device, open, output};

/// Plans and prints.
///
/// # Errors
/// When the model cannot be read, or nothing fits.
pub(crate) fn run(args: &PlanArgs, environment: &Environment) -> Result<()> {
    let source = ModelSource::parse(&args.model.model)?;
    let spec = source.spec(&environment.hub)?;
    let device = device::choose_for_plan(args.engine.device)?;
    // A card that was asked for by name need not be here, so it is not asked what it has free.
    let request = match args.engine.device {
        DeviceChoice::Cuda => open::request_anywhere,
        DeviceChoice::Auto | DeviceChoice::Cpu => open::request,
    };
    let request = request(source.generated_bytes(&spec), device, args.context, &args.engine, environment);
    let request = Request { guesses: args.guess.any(), ..request };
    match open::plan(&spec, &request) {
        Ok(plan) => {
            let printed = Printed::new(&plan);
            if args.json { output::print_json(&printed) } else { output::print(&printed.text()) }
        }
        Err(error) => {
            if args.json {
                print_refusal(&error, &request)?;
            }
            Err(error.into())
        }
    }
}

/// The plan, why it is so, and what it is compared with.
#[derive(Serialize)]
struct Printed {
    #[serde(flatten)]
    report: PlanReport,
    why: Vec<String>,
    compared: Vec<Compared>,
}

/// Device memory of another way to place KV and activations (HeadInfer paper, section 4).
#[derive(Serialize)]
struct Compared {
    layout: &'static str,
    device_bytes: u64,
}

impl Printed {
    fn new(plan: &Plan) -> Self {
        let context = plan.knobs().context as u64;
        let compared = PaperLayout::ALL.map(|layout| Compared {
            layout: layout.name(),
            device_bytes: layout.device_bytes(&plan.spec, context),
        });
        Self { report: plan.report(), why: plan.why().to_vec(), compared: compared.into() }
    }

    fn text(&self) -> String {
        let mut text = self.report.text();
        if !self.why.is_empty() {
            text += "why:\n";
            text.extend(self.why.iter().map(|line| format!("  {line}\n")));
        }
        text += "device memory of other layouts:\n";
        for Compared { layout, device_bytes } in &self.compared {
            text += &format!("  {layout:<26} {:>10}\n", Bytes(*device_bytes).to_string());
        }
        text
    }
}

/// What does not fit, for programs; people read the error.
fn print_refusal(error: &PlanError, request: &Request) -> Result<()> {
    let PlanError::DoesNotFit { memory, need, have, largest, hint, longest, .. } = error else {
        return Ok(());
    };
    output::print_json(&json!({
        "fits": false,
        "context": request.context,
        "memory": memory,
        "need_bytes": need.0,
        "have_bytes": have.0,
        "largest": largest,
        "hint": hint,
        "longest_context": longest,
    }))
}

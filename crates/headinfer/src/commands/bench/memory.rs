//! `bench memory`: device memory by context, ours as planned and the paper's layouts as computed.

use anyhow::Result;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::plan::paper::PaperLayout;
use headinfer_core::plan::{DeviceKind, PlacementMode, Plan, Request};
use headinfer_core::units::Bytes;
use serde::Serialize;

use crate::args::{DeviceChoice, Environment, MemoryArgs};
use crate::error::Failure;
use crate::model_source::ModelSource;
use crate::plot::{LineChart, Series, Tick};
use crate::{open, output};

/// Host memory when no flag says otherwise: the figure is about the device.
const ANY_HOST: u64 = 1 << 50;

/// Plans, prints, draws.
///
/// # Errors
/// When the model is not known, a context cannot be planned, or the plot cannot be written.
pub(crate) fn run(args: &MemoryArgs, environment: &Environment) -> Result<()> {
    let source = ModelSource::parse(&args.model)?;
    let spec = source.spec(&environment.hub)?;
    if args.context.contains(&0) {
        return Err(Failure::usage("--context 0: give at least one token").into());
    }
    let device = match args.engine.device {
        DeviceChoice::Cpu => DeviceKind::Cpu,
        DeviceChoice::Auto | DeviceChoice::Cuda => DeviceKind::Cuda,
    };
    let mut request = open::request_anywhere(0, device, 1, &args.engine, environment);
    if args.engine.host_memory.is_none() {
        request.host_budget = ANY_HOST;
    }
    let table = Table::new(&spec, &request, &args.context);
    if let Some(path) = &args.plot {
        output::write_file(path, table.chart().svg().as_bytes())?;
    }
    if args.json { output::print_json(&table) } else { output::print(&table.text()) }
}

#[derive(Serialize)]
struct Table {
    model: String,
    /// Of device memory, for `within_budget`.
    budget_bytes: u64,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    context: usize,
    /// All heads on the host; `None` where that does not fit.
    offloaded_bytes: Option<u64>,
    /// Its part that holds K and V.
    offloaded_kv_bytes: Option<u64>,
    /// As many heads on the device as the budget holds.
    within_budget_bytes: Option<u64>,
    /// Other layouts, in the paper's order.
    compared: Vec<Compared>,
}

#[derive(Serialize)]
struct Compared {
    layout: &'static str,
    device_bytes: u64,
}

impl Table {
    fn new(spec: &ModelSpec, request: &Request, contexts: &[usize]) -> Self {
        let rows = contexts.iter().map(|context| Row::new(spec, request, *context)).collect();
        Self { model: spec.name.clone(), budget_bytes: request.device_budget, rows }
    }

    fn text(&self) -> String {
        let size = |bytes: Option<u64>| bytes.map_or("does not fit".into(), |b| Bytes(b).to_string());
        let mut text = format!("device memory of {} by context\n{:>8}", self.model, "context");
        let names = PaperLayout::ALL.map(PaperLayout::name);
        let heads =
            ["offloaded".to_owned(), "of it KV".to_owned(), format!("in {}", Bytes(self.budget_bytes))];
        for name in heads.iter().map(String::as_str).chain(names) {
            text += &format!("  {name:>width$}", width = width(name));
        }
        text.push('\n');
        for row in &self.rows {
            text += &format!("{:>8}", tokens(row.context));
            let ours = [row.offloaded_bytes, row.offloaded_kv_bytes, row.within_budget_bytes];
            let cells = ours.into_iter().chain(row.compared.iter().map(|c| Some(c.device_bytes)));
            for (cell, name) in cells.zip(heads.iter().map(String::as_str).chain(names)) {
                text += &format!("  {:>width$}", size(cell), width = width(name));
            }
            text.push('\n');
        }
        text
    }

    fn chart(&self) -> LineChart {
        let points = |bytes: &dyn Fn(&Row) -> Option<u64>| -> Vec<(f64, f64)> {
            let point = |row: &Row| Some((row.context as f64, bytes(row)? as f64));
            self.rows.iter().filter_map(point).collect()
        };
        let mut series =
            vec![Series { name: "headinfer, offloaded".into(), points: points(&|row| row.offloaded_bytes) }];
        for (i, layout) in PaperLayout::ALL.into_iter().enumerate() {
            let points = points(&|row| row.compared.get(i).map(|c| c.device_bytes));
            series.push(Series { name: layout.name().into(), points });
        }
        let all: Vec<f64> = series.iter().flat_map(|s| &s.points).map(|p| p.1).collect();
        LineChart {
            title: format!("Device memory of {} by context", self.model),
            x_label: "context, tokens".into(),
            y_label: "weights, KV and activations on the device".into(),
            x_ticks: self
                .rows
                .iter()
                .map(|r| Tick { at: r.context as f64, text: tokens(r.context) })
                .collect(),
            y_ticks: doublings(&all),
            series,
        }
    }
}

impl Row {
    fn new(spec: &ModelSpec, request: &Request, context: usize) -> Self {
        let planned = |placement| {
            let request = Request { context, placement, ..request.clone() };
            Plan::new(spec, &request).ok()
        };
        let offloaded = planned(PlacementMode::Offload);
        let compared = PaperLayout::ALL.map(|layout| Compared {
            layout: layout.name(),
            device_bytes: layout.device_bytes(spec, context as u64),
        });
        Self {
            context,
            offloaded_kv_bytes: offloaded.as_ref().map(Plan::device_kv_bytes),
            offloaded_bytes: offloaded.as_ref().map(Plan::device_bytes),
            within_budget_bytes: planned(request.placement).as_ref().map(Plan::device_bytes),
            compared: compared.into(),
        }
    }
}

/// Powers of two from below the least value to above the greatest, at most ten.
fn doublings(values: &[f64]) -> Vec<Tick> {
    let (low, high) = values.iter().fold((f64::INFINITY, 0.0f64), |(a, b), v| (a.min(*v), b.max(*v)));
    if !low.is_finite() {
        return Vec::new();
    }
    let (first, last) = (low.log2().floor() as i32, high.log2().ceil() as i32);
    let step = ((last - first) / 10 + 1) as usize;
    // Whole units: 16.0 GiB is 16 GiB here.
    let text = |power: i32| Bytes(1 << power.max(0)).to_string().replace(".00 ", " ").replace(".0 ", " ");
    let tick = |power: i32| Tick { at: f64::from(power).exp2(), text: text(power) };
    (first..=last).step_by(step).map(tick).collect()
}

fn tokens(n: usize) -> String {
    match n {
        n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => format!("{}M", n >> 20),
        n if n >= 1 << 10 && n.is_multiple_of(1 << 10) => format!("{}k", n >> 10),
        n => n.to_string(),
    }
}

fn width(name: &str) -> usize {
    name.len().max("does not fit".len())
}

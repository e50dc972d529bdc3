//! `headinfer serve`.

use std::net::{IpAddr, Ipv4Addr};

use clap::Args;
use headinfer_core::units::parse_tokens;

use super::{EngineArgs, GuessArgs, ModelArg, StoreArgs};

/// Serve a model over OpenAI-compatible HTTP.
#[derive(Debug, Args)]
#[command(after_help = "\
Paths: /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, /health, /metrics, /cache (where each
KV head lives and what moves), and / for a browser: a page to put a document into and ask about it. A request with
the header X-Session-Id: NAME is worked on when its client leaves; asked again, or by GET /v1/sessions/NAME, its answer
is heard from the beginning, and DELETE ends it. With --cache-dir, what was prefilled is on disk by and by, and whoever
asks again goes on from there, also after a restart. Ctrl-C lets running answers finish for some seconds and waits until
the disk has what was prefilled; a second one ends at once.

Examples:
  headinfer serve -m ./my-model --context 128k
  headinfer serve -m ./my-model --cache-dir ~/.cache/prefills --cache-size 100GiB
  headinfer serve -m ./my-model --host 0.0.0.0 --api-key \"$(cat key)\" --parallel 4
  curl localhost:8080/v1/completions -d '{\"prompt\": \"Once\", \"max_tokens\": 16}'")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,

    /// Name of the model to clients; default what -m says, of a folder its last part.
    #[arg(long, value_name = "NAME")]
    pub(crate) model_id: Option<String>,

    /// Address to listen on; others than loopback need --api-key or --insecure.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_host, default_value = "127.0.0.1")]
    #[arg(env = "HEADINFER_HOST", hide_env_values = true)]
    pub(crate) host: IpAddr,

    /// Port to listen on; 0 lets the system choose.
    #[arg(long, value_name = "PORT", default_value_t = 8080, env = "HEADINFER_PORT", hide_env_values = true)]
    pub(crate) port: u16,

    /// Key that clients must send; guards every path but /health and the files of the page at /, which asks for it.
    #[arg(long, value_name = "KEY", env = "HEADINFER_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,

    /// Serve anyone who can reach the address, without a key.
    #[arg(long)]
    pub(crate) insecure: bool,

    /// Requests worked on at the same time; each has a KV cache of its own, and they share the memory.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) parallel: u16,

    /// Requests that may wait; more are turned away with 429.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) queue: u16,

    /// Most tokens of a request, prompt and answer together; default what the model was made for, at most 128k.
    #[arg(short, long, value_name = "N", value_parser = parse_tokens, env = "HEADINFER_CONTEXT")]
    #[arg(hide_env_values = true)]
    pub(crate) context: Option<usize>,

    #[command(flatten)]
    pub(crate) guess: GuessArgs,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

fn parse_host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        _ => text.parse().map_err(|_| "not an IP address: write 127.0.0.1, ::1 or 0.0.0.0".to_owned()),
    }
}

//! `podwire-cni`, compiled: one verb from the environment, a configuration on standard input, an answer on standard output.
//!
//! The same verbs, words and codes as `shim/cni`, without an interpreter to start. A verb's way:
//!
//! ```text
//! environment (what, for whom) + document → config, wishes (how)
//!   → verbs: one call of the router, by router and call (gRPC on a Unix socket), or a tombstone where nobody answers
//!   → result, or a CniError: JSON on standard output
//! ```
#![forbid(unsafe_code)]

mod call;
mod config;
#[rustfmt::skip]
#[allow(dead_code, clippy::all)]
mod contract;
mod document;
mod environment;
mod errors;
mod result;
mod router;
mod text;
mod tombstone;
mod verbs;
mod wishes;

use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use serde_json::{Value, json};

use config::{Config, MOST_BYTES, NEWEST, VERSIONS};
use environment::Environment;
use errors::{BUG, CniError, ENVIRONMENT, IO};
use router::Began;

const USAGE: &str = "\
podwire-cni: the CNI plugin of Podwire. A container runtime runs it; `podwire install` sets one up to do so.

It reads a network configuration (JSON) on standard input, and in the environment
  CNI_COMMAND      ADD, DEL, CHECK, STATUS, GC or VERSION
  CNI_CONTAINERID  CNI_IFNAME  CNI_NETNS  CNI_ARGS  as the CNI specification has them
Configuration: {\"cniVersion\": \"1.0.0\", \"name\": \"podwire\", \"type\": \"podwire-cni\",
  \"socket\": \"/run/podwire/router.sock\", \"mtu\": 0, \"wait_s\": 5,
  \"capabilities\": {\"portMappings\": true, \"bandwidth\": true, \"ips\": true, \"mac\": true, \"dns\": true}}
It answers JSON on standard output. Exit status: 0 done, 1 with an error object {\"code\", \"msg\"}.
";

fn main() -> ExitCode {
    // Before all else: an Attach that began before a Detach is refused.
    let began = Began::now();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if !arguments.is_empty() || std::env::var_os("CNI_COMMAND").is_none() {
        let asked = arguments.len() == 1 && (arguments[0] == "-h" || arguments[0] == "--help");
        let told = std::io::stderr().write_all(USAGE.as_bytes());
        return exit(asked && told.is_ok());
    }
    std::panic::set_hook(Box::new(|_| ())); // whatever it is, the runtime gets an answer, and only that
    let mut version = NEWEST.to_owned();
    let done = catch_unwind(AssertUnwindSafe(|| run(began, &mut version))).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(CniError::new(BUG, format!("a bug of podwire-cni: {}", words.unwrap_or("a panic"))))
    });
    match done {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(answer)) => exit(write(&answer)),
        Err(error) => {
            let mut answer = json!({"cniVersion": version, "code": error.code, "msg": error.message});
            if !error.details.is_empty() {
                answer["details"] = error.details.into();
            }
            write(&answer);
            ExitCode::FAILURE
        }
    }
}

/// Do one verb. `version` becomes what the configuration speaks, as soon as that is known.
fn run(began: Began, version: &mut String) -> Result<Option<Value>, CniError> {
    let environment = Environment::read()?;
    let config = Config::new(&standard_input()?)?;
    let spoken = config.version()?;
    if VERSIONS.contains(&spoken) {
        *version = spoken.to_owned();
    }
    let command = environment.command.as_str();
    if command == "VERSION" {
        return verbs::version(&config).map(Some);
    }
    config.check_version(command)?;
    match command {
        "ADD" => return verbs::add(&environment, &config, began).map(Some),
        "DEL" => verbs::delete(&environment, &config)?,
        "CHECK" => verbs::check(&environment, &config)?,
        "GC" => verbs::collect(&config, began)?,
        "STATUS" => {
            if let Some(note) = verbs::status(&config)? {
                // A log that takes nothing does not make the node unready.
                let _ = writeln!(std::io::stderr(), "podwire-cni: {note}");
            }
        }
        _ => {
            let why = format!("CNI_COMMAND {}: use ADD, DEL, CHECK, STATUS, GC or VERSION", text::repr(command));
            return Err(CniError::new(ENVIRONMENT, why));
        }
    }
    Ok(None)
}

/// Read the configuration. What is too long is read to its end all the same, but not kept: its writer must not fail.
fn standard_input() -> Result<Vec<u8>, CniError> {
    let mut content = Vec::new();
    let mut input = std::io::stdin().lock();
    let mut read = || {
        input.by_ref().take(MOST_BYTES as u64 + 1).read_to_end(&mut content)?;
        std::io::copy(&mut input, &mut std::io::sink())
    };
    match read() {
        Ok(_) => Ok(content),
        Err(error) => Err(CniError::new(IO, format!("cannot read standard input: {}", errors::strerror(&error)))),
    }
}

fn write(answer: &Value) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}").and_then(|()| out.flush()).is_ok()
}

fn exit(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

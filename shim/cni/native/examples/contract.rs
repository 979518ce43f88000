//! Make `src/contract.rs` from proto/podwire/v1: the messages of the calls that a CNI plugin makes, and what they hold.
//!
//! `cargo run -p podwire-cni --example contract` writes it; `cargo test -p podwire-cni` fails when it is stale.

use std::path::{Path, PathBuf};

const MESSAGES: [&str; 17] = [
    "AttachRequest",
    "AttachResponse",
    "Attachment",
    "AttachmentKey",
    "CheckRequest",
    "CheckResponse",
    "DetachRequest",
    "DetachResponse",
    "FreeAddresses",
    "GetStatusRequest",
    "Lease",
    "Limits",
    "PortMapping",
    "Status",
    "SubnetSource",
    "SyncRequest",
    "SyncResponse",
];
/// Fields of Status that are read; some of the others are messages that would have to be had as well.
const STATUS: [&str; 7] = ["node", "subnets", "peers", "free_addresses", "peers_unreachable", "unreachable", "source"];
const FIRST_LINE: &str =
    "// Made from proto/podwire/v1 by examples/contract.rs; do not edit. What the CNI plugin knows of the contract.\n";

fn main() {
    std::fs::write(path(), made()).expect("src/contract.rs can be written");
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/contract.rs")
}

fn made() -> String {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../proto");
    let described = protox::compile(["podwire/v1/router.proto"], [proto]).expect("the contract compiles");
    let requests = described.file.into_iter().map(|mut file| {
        file.service.clear();
        file.enum_type.clear();
        file.source_code_info = None;
        file.message_type.retain(|message| MESSAGES.contains(&message.name()));
        for message in file.message_type.iter_mut().filter(|message| message.name() == "Status") {
            message.field.retain(|field| STATUS.contains(&field.name()));
        }
        (prost_build::Module::from_protobuf_package_name(file.package()), file)
    });
    let mut config = prost_build::Config::new();
    config.btree_map(["."]);
    let modules = config.generate(requests.collect()).expect("the messages can be written in Rust");
    FIRST_LINE.to_owned() + &modules.into_values().collect::<String>()
}

#[test]
fn what_is_checked_in_is_made_from_the_contract() {
    let found = std::fs::read_to_string(path()).unwrap_or_default();
    assert!(found == made(), "src/contract.rs is stale: cargo run -p podwire-cni --example contract");
}

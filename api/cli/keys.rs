//! `sightline keys`: who may use the API.

use std::process::ExitCode;

use reqwest::Method;
use serde_json::{Value, json};

use crate::config::{KeysAction, KeysArgs};
use crate::output::{note, out, outln};
use crate::remote::{Remote, escaped, text};
use crate::table::Table;

/// Does what was asked for.
pub(crate) async fn run(args: KeysArgs) -> anyhow::Result<ExitCode> {
    match args.action {
        KeysAction::Create {
            name,
            scopes,
            expires,
            requests_per_second,
            uploads,
            queued_jobs,
            queued_bytes,
            json,
            api,
        } => {
            let limits = json!({
                "requests_per_second": requests_per_second, "uploads": uploads, "queued_jobs": queued_jobs,
                "queued_bytes": queued_bytes.map(|bytes| bytes.as_u64()),
            });
            let wish = json!({ "name": name, "scopes": scopes, "expires": expires, "limits": limits });
            let made = Remote::new(&api)?.post("/v1/keys", &wish).await?;
            if json {
                outln!("{}", serde_json::to_string_pretty(&made)?);
            } else {
                outln!("{}", text(&made["key"]));
                note!("this is the only time that the key is shown; its id is {}", text(&made["id"]));
            }
        }
        KeysAction::List { json, api } => {
            let keys = Remote::new(&api)?.get("/v1/keys").await?["keys"].take();
            if json {
                outln!("{}", serde_json::to_string_pretty(&keys)?);
            } else {
                out!("{}", table(&keys));
            }
        }
        KeysAction::Revoke { id, api } => {
            let key = Remote::new(&api)?.ask(Method::DELETE, &format!("/v1/keys/{}", escaped(&id))).await?;
            outln!("key {} of {} is revoked", text(&key["id"]), text(&key["name"]));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(keys: &Value) -> Table {
    let mut table = Table::new(&["id", "name", "scopes", "created", "expires", "revoked"]);
    for key in keys.as_array().into_iter().flatten() {
        let scopes: Vec<String> = key["scopes"].as_array().into_iter().flatten().map(text).collect();
        table.row([
            text(&key["id"]),
            text(&key["name"]),
            scopes.join(","),
            text(&key["created_at"]),
            text(&key["expires_at"]),
            text(&key["revoked_at"]),
        ]);
    }
    table
}

//! `GET /v1/admin/ledger`: what to bill, for the service's admins.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use ckrv_core::wire::{Ledger, LedgerLine, Problem};
use ckrv_store::LedgerEntry;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::error::ApiError;
use crate::extract::{Caller, Query, require_accept};
use crate::state::ApiState;
use crate::usage::{chosen_month, usd};

const JSON: &str = "application/json";
const CSV: &str = "text/csv";

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    Json,
    Csv,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LedgerParams {
    /// `yyyy-mm`, UTC; the running month by default.
    #[param(pattern = r"^[0-9]{4}-(0[1-9]|1[0-2])$")]
    month: Option<String>,
    /// Comes before `Accept`.
    #[param(inline)]
    format: Option<Format>,
}

/// The month's jobs beyond the included ones, of all users. Entries that were given back are marked as voided.
#[utoipa::path(get, path = "/v1/admin/ledger", tag = "admin", params(LedgerParams),
    responses((status = 200, content((Ledger = "application/json"), (String = "text/csv"))),
        (status = 403, description = "The caller is no admin", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn get_ledger(
    State(state): State<ApiState>,
    // What lies under `/v1/admin` is refused to all but admins before it gets here.
    _: Caller,
    Query(params): Query<LedgerParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let format = chosen_format(params.format, &headers)?;
    let (month, _) = chosen_month(params.month.as_deref(), state.now())?;
    let entries = state.stores.accounts.ledger(&month).await?;
    let billed = entries.iter().filter(|entry| entry.voided_at.is_none()).map(|entry| entry.micro_usd).sum();
    let entries: Vec<LedgerLine> = entries.into_iter().map(line).collect();
    if format == Format::Json {
        return Ok(axum::Json(Ledger { month, entries, total_usd: usd(billed) }).into_response());
    }
    let name = format!("attachment; filename=\"ckrv-ledger-{month}.csv\"");
    let headers = [(header::CONTENT_TYPE, "text/csv; charset=utf-8"), (header::CONTENT_DISPOSITION, name.as_str())];
    Ok((headers, csv_text(&entries)?).into_response())
}

fn chosen_format(asked: Option<Format>, headers: &HeaderMap) -> Result<Format, ApiError> {
    if let Some(format) = asked {
        return Ok(format);
    }
    require_accept(headers, &[JSON, CSV])?;
    // JSON where both would do.
    Ok(if require_accept(headers, &[JSON]).is_ok() { Format::Json } else { Format::Csv })
}

fn line(entry: LedgerEntry) -> LedgerLine {
    LedgerLine {
        month: entry.month,
        owner: entry.owner,
        job: entry.job,
        at: entry.at,
        cost_usd: usd(entry.micro_usd),
        voided: entry.voided_at.is_some(),
        voided_at: entry.voided_at,
    }
}

fn csv_text(entries: &[LedgerLine]) -> Result<Vec<u8>, ApiError> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    // A header also where there is no entry.
    writer.write_record(["month", "owner", "job", "at", "cost_usd", "voided", "voided_at"]).map_err(ApiError::internal)?;
    for entry in entries {
        let voided_at = entry.voided_at.map(|at| at.to_string()).unwrap_or_default();
        let price = format!("{:.6}", entry.cost_usd);
        let (owner, job, at) = (entry.owner.to_string(), entry.job.to_string(), entry.at.to_string());
        let voided = if entry.voided { "true" } else { "false" };
        writer.write_record([&entry.month, &owner, &job, &at, &price, voided, &voided_at]).map_err(ApiError::internal)?;
    }
    writer.into_inner().map_err(|error| ApiError::internal(error.to_string()))
}

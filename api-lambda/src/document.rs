//! What holds for every endpoint, added to the OpenAPI document in one place: how bad requests are refused, and our own faults.

use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};

/// Refusals that come before a handler, or from any of them.
const ANY: [(&str, &str); 5] = [
    ("406", "`Accept` rules out what this address answers with"),
    ("421", "Not a host name of this service"),
    ("429", "Too many requests; `Retry-After` tells when to come back"),
    ("500", "A fault of the service"),
    ("503", "A part that the service needs does not answer; try again"),
];
const OF_BODIES: [(&str, &str); 5] = [
    ("400", "The body can't be read"),
    ("408", "The body took too long to arrive"),
    ("413", "The body is too long"),
    ("415", "Not a media type that this address takes"),
    ("422", "A value is not allowed"),
];
const OF_TOKENS: [(&str, &str); 2] =
    [("401", "No token, or one that is not good"), ("403", "The token's scope or its user's role does not suffice")];

/// Adds the answers that an operation does not tell of by itself.
pub(crate) fn complete(mut document: OpenApi) -> OpenApi {
    for item in document.paths.paths.values_mut() {
        for operation in operations(item) {
            let is_public = operation.security.as_ref().is_some_and(|security| security.iter().all(is_empty));
            let mut answers = ANY.to_vec();
            if operation.request_body.is_some() {
                answers.extend(OF_BODIES);
            }
            if !is_public {
                answers.extend(OF_TOKENS);
            }
            if operation.parameters.as_ref().is_some_and(|parameters| !parameters.is_empty()) {
                answers.push(("422", "A value is not allowed"));
            }
            for (status, description) in answers {
                operation.responses.responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(problem(description)));
            }
        }
    }
    document
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, patch, .. } = item;
    [get, put, post, delete, patch].into_iter().flatten()
}

fn is_empty(requirement: &utoipa::openapi::SecurityRequirement) -> bool {
    *requirement == utoipa::openapi::SecurityRequirement::default()
}

fn problem(description: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(description).content("application/problem+json", content).build()
}

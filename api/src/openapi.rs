//! The API's description, generated from the routes themselves: `/openapi.json`, and `/docs` to read and try it.

use axum::Extension;
use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use utoipa::openapi::path::{Operation, Parameter};
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, HeaderBuilder, Ref, RefOr, Response, Server};
use utoipa::{OpenApi, ToSchema};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::error::Problem;
use crate::links;
use crate::state::Shared;

/// Path of the description.
pub(crate) const PATH: &str = "/openapi.json";
/// Path of the page that shows it.
pub(crate) const DOCS: &str = "/docs";
/// What the page may load and run.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
    font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// The name of the security scheme for keys in the description.
const KEY: &str = "key";

/// Refusals that any request can get, whatever it asks for: status and meaning.
const ALWAYS: [(&str, &str); 6] = [
    ("400", "`header_twice`, `text_invalid`: the URL contains a NUL character."),
    ("401", "`key_missing`, `key_invalid`: the server requires an API key."),
    (
        "403",
        "`key_scope`, `priority_forbidden`: the key does not allow this. `host_forbidden`, `origin_forbidden`: the request comes from another site's page.",
    ),
    ("429", "`limit_reached`: this key's limit; `key_invalid_too_often`. Retry after `Retry-After` seconds."),
    ("500", "`internal`: a bug; the log has details under the answer's `x-request-id`."),
    ("503", "`queue_unavailable`, `index_unavailable`: retry after `Retry-After` seconds; nothing is lost."),
];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sightline",
        description = "Recognises objects in images: upload images, then poll, wait, stream events or receive a webhook.\n\n\
            Every error is an RFC 9457 problem document with a stable `code`. Once a server has a key, \
            every request except those for health and this description needs one.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
        contact(),
    ),
    components(schemas(Problem)),
    tags(
        (name = "jobs", description = "One image, one job."),
        (name = "batches", description = "Many images that are sent, tracked, read and canceled together."),
        (name = "models", description = "Models that jobs can run."),
        (name = "topics", description = "Queues of jobs. Changing them needs the scope `admin`."),
        (name = "dead", description = "Inputs of failed jobs. Needs the scope `admin`."),
        (name = "keys", description = "API keys. Needs the scope `admin`."),
        (name = "operations", description = "Health and metrics of this server."),
    )
)]
struct Description;

/// The description before the routes are added.
pub(crate) fn head() -> utoipa::openapi::OpenApi {
    Description::openapi()
}

/// The description of these routes as text. The committed copy does not include where it is served from.
pub(crate) fn text(mut routes: utoipa::openapi::OpenApi) -> String {
    complete(&mut routes);
    let mut text = routes.to_pretty_json().expect("a description is JSON");
    text.push('\n');
    text
}

/// The description of these routes, as this server serves it.
#[derive(Clone)]
pub(crate) struct Served(Bytes);

impl Served {
    pub(crate) fn of(mut routes: utoipa::openapi::OpenApi) -> Self {
        if !links::prefix().is_empty() {
            routes.servers = Some(vec![Server::new(links::prefix())]);
        }
        Self(text(routes).into())
    }
}

/// Adds what holds for all operations, so that no route has to repeat it.
fn complete(document: &mut utoipa::openapi::OpenApi) {
    let scheme = Http::builder().scheme(HttpAuthScheme::Bearer).description(Some("`Authorization: Bearer sl_…`"));
    let components = document.components.get_or_insert_default();
    components.security_schemes.insert(KEY.to_owned(), RefOr::T(SecurityScheme::Http(scheme.build())));
    for item in document.paths.paths.values_mut() {
        let methods = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in methods.into_iter().flatten() {
            operation.parameters.iter_mut().flatten().for_each(take_null_away);
            if operation.security.is_none() {
                operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>(KEY, [])]);
                for (status, meaning) in ALWAYS {
                    let response = RefOr::T(Response::new(meaning));
                    operation.responses.responses.entry(status.to_owned()).or_insert(response);
                }
            }
            describe_problems(operation);
        }
    }
}

/// A parameter is present or absent; it is never null.
fn take_null_away(parameter: &mut RefOr<Parameter>) {
    if let RefOr::T(Parameter { schema: Some(RefOr::T(Schema::Object(object))), .. }) = parameter
        && let SchemaType::Array(types) = &object.schema_type
        && let Some(kind) = types.iter().find(|kind| **kind != Type::Null)
    {
        object.schema_type = SchemaType::Type(kind.clone());
    }
}

/// Gives every refusal the same shape.
fn describe_problems(operation: &mut Operation) {
    let refusals = operation.responses.responses.iter_mut().filter(|(status, _)| status.as_str() >= "400");
    for (status, response) in refusals {
        let RefOr::T(response) = response else { continue };
        let problem = Content::new(Some(Ref::from_schema_name(Problem::name())));
        response.content.insert("application/problem+json".into(), RefOr::T(problem));
        let header = match status.as_str() {
            "401" => Some(("WWW-Authenticate", "`Bearer`.", Type::String)),
            "429" | "503" => Some(("Retry-After", "Seconds after which to retry.", Type::Integer)),
            _ => None,
        };
        if let Some((name, meaning, kind)) = header {
            let schema = Schema::from(ObjectBuilder::new().schema_type(kind));
            let header = HeaderBuilder::new().schema(Some(schema)).description(Some(meaning));
            response.headers.insert(name.to_owned(), RefOr::T(header.build()));
        }
    }
}

/// Returns the API description.
#[utoipa::path(
    get, path = "/openapi.json", tag = "operations", operation_id = "getOpenApi", security(()),
    responses((status = 200, description = "This description.", body = serde_json::Value))
)]
pub(crate) async fn show(Extension(served): Extension<Served>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], served.0)
}

/// The page that shows the description; all that it needs is inside the binary.
pub(crate) fn page() -> axum::Router<Shared> {
    // Relative to the page, so that it works behind any prefix.
    let config = Config::new([format!("..{PATH}")])
        .try_it_out_enabled(true)
        .persist_authorization(false)
        .display_request_duration(true);
    let pages: axum::Router<Shared> = SwaggerUi::new(DOCS).config(config).into();
    pages.layer(axum::middleware::map_response(finish_page))
}

/// Lets the page run only its own scripts, and adds the prefix of all links to its redirect.
async fn finish_page(mut response: axum::response::Response) -> axum::response::Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    if let Some(moved) = headers.get(header::LOCATION).and_then(|to| to.to_str().ok()).filter(|to| to.starts_with('/'))
        && let Ok(to) = HeaderValue::from_str(&links::to(moved))
    {
        headers.insert(header::LOCATION, to);
    }
    response
}

// Package admin is the operator's door: an HTTP API with JSON on a unix socket (mode 0600) and, if configured, on TCP
// behind a bearer token. The command line is its client (Client) and can do nothing that the API cannot.
//
//	GET  /livez                the process answers
//	GET  /readyz               200 when mail can be accepted, 503 with the reason when not
//	GET  /metrics              Prometheus
//	GET  /v1/status            ourselves, the primaries, the queue by domain
//	GET  /v1/queue             messages; ?domain= ?from= ?rcpt= ?held= ?after= ?limit=
//	GET  /v1/queue/{id}        one message, each recipient
//	POST /v1/flush             try now what waits: all, {"domain": …} or {"id": …}
//	POST /v1/reload            read the configuration and the lists again
//
// Errors are {"error": "…"} with a fitting status. Over TCP only /livez and /readyz go without the token.
package admin

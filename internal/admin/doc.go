// Package admin is the operator's door: an HTTP API with JSON on a unix socket (mode 0600) and, if configured, on TCP
// behind a bearer token. The command line is its client (Client) and can do nothing that the API cannot.
//
//	GET    /livez                        the process answers
//	GET    /readyz                       200 when mail can be accepted, 503 with the reason when not
//	GET    /metrics                      Prometheus
//	GET    /v1/status                    ourselves, the primaries, the queue by domain
//	GET    /v1/queue                     messages; ?domain= ?from= ?rcpt= ?held= ?after= ?limit=
//	GET    /v1/queue/{id}                one message, each recipient
//	GET    /v1/queue/{id}/content        its content, as it would go to the primary
//	POST   /v1/queue/{op}                hold, release, retry, drop or redirect: {"ids": […]}, a filter, or {"all": true}
//	POST   /v1/flush                     try now what waits: all, {"domain": …} or {"id": …}
//	POST   /v1/reload                    read the configuration and the lists again
//	GET    /v1/primaries                 all that is known of each primary, step by step
//	POST   /v1/probe                     probe now: all, or {"domain": …}
//	POST   /v1/domains/{d}/recovered     a hint from the primary: it is back
//	POST   /v1/resume                    close the breaker of a primary that was mended
//	GET    /v1/recipients/{address}      would it be taken, and who says so
//	GET    /v1/sources                   where the recipients come from; POST /v1/sources/{refresh|confirm}
//	GET    /v1/overrides                 what operators ordered; POST orders, DELETE ?kind= ?subject= takes back
//	GET    /v1/outages                   history; ?primary= ?domain= ?days=
//	GET    /v1/alarms                    alarms that are on
//	GET    /v1/spool                     how full it is
//	POST   /v1/spool/verify              read everything and say what is damaged (lines of JSON)
//	GET    /v1/spool/backup              all messages as a tar file
//	POST   /v1/spool/restore             take such a file in (lines of JSON)
//
// Errors are {"error": "…"} with a fitting status. Over TCP only /livez and /readyz go without the token. What an
// operator changes is an event in the log, with who did it: the user at the socket, or the address.
package admin

// Package daemon builds all parts, fits them to each other and runs them. It is the only place that knows everybody.
//
// The parts stop in the order in which a message passes them: inbound (which lets messages in progress end), then the
// forwarder (which lets sessions past the final dot read their reply), then the prober and the admin API; the spool
// closes last.
package daemon

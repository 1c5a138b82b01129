// Package healthprobe tells which primaries take mail, out of band and within about a second of the moment that one
// begins to, and where a domain's primaries are.
//
// What a caller may rely on:
//   - Open says yes to a primary only after probes in a row went as deep as a delivery (Config.Rise of them; the very
//     first after the start is enough), and until Config.Fall in a row did not.
//   - Route never turns mail away: where the DNS is in trouble the last good answer holds, and where nothing is better
//     than us the route has no tiers, so that mail waits.
//   - A hint, from whomever, brings a probe and never a belief.
//   - Each distinct primary is probed once, however many domains it serves, and never more than Config.MaxProbes at
//     the same time.
//
// What we believe of a primary:
//
//	unknown   not probed since the start                        closed
//	up        takes mail                                        open
//	refusing  answers, but does not take mail (421, 4yz, 5yz)   closed
//	down      does not answer, or not in SMTP                   closed
//
// The decisions are pure and stand in files without clock or network: belief.go (what a probe's result changes),
// schedule.go (when to probe next), route.go (which MX records are primaries), cause.go (what an error means). Run owns
// all goroutines: one dispatcher, and at most MaxProbes probes and MaxLookups lookups that it started. Prober.mu guards
// everything that they share; no I/O is done under it.
package healthprobe

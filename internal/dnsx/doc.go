// Package dnsx asks the DNS, and tells the three kinds of answer apart that mail must never confuse: these records;
// certainly none (ErrNotFound, of which ErrNoName is NXDOMAIN); and not known now, which is every other error. Only
// the second may ever turn a message away.
//
// A Resolver is a stub: it asks recursive resolvers, those of its configuration or of /etc/resolv.conf, over UDP with
// EDNS and over TCP where an answer was truncated. It keeps answers as long as their TTL says, within bounds; callers
// that ask the same at the same time share one exchange. It starts no goroutine that outlives a call.
//
// Errors are *net.DNSError, unwrapped, because the libraries for SPF and DKIM look for exactly that type.
package dnsx

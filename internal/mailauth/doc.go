// Package mailauth finds out who a message is really from: SPF (RFC 7208) of the reverse-path and of the HELO name, DKIM
// (RFC 6376), and DMARC (RFC 9989), which holds both against the From field. It looks at the header for what real mail
// does not have, writes what it found into Authentication-Results (RFC 8601) and Received-SPF, and finds fields that
// claim to have been written by us or by the primary.
//
// Nothing here decides about a message: results and findings go to the policy. What can't be known now is temperror
// and speaks for nothing. Each call is bounded in time by its context and by the configuration, in memory and in work
// by constants, whatever a message or a zone holds.
package mailauth

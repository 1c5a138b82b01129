package inbound

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"

	"understudy/internal/mta"
)

// ourFault is all that a client hears of an error of ours. It is temporary: a backup MX that says 5yz by accident
// loses mail.
var ourFault = mta.NewReply(451, "4.3.0", "local trouble, please try again later")

// replyTo is the one door from errors to SMTP: a *mta.Reply in the chain is said as it is, any other error is our own
// fault, said without detail and logged with it.
func replyTo(err error, log *slog.Logger, peer netip.AddrPort) *mta.Reply {
	if r, ok := errors.AsType[*mta.Reply](err); ok && r.Code >= 200 && r.Code <= 599 {
		return r
	}
	log.Error("own fault", "peer", peer, "err", err)
	return ourFault
}

// maxReplyText keeps a reply line within 512 octets (RFC 5321, 4.5.3.1.5).
const maxReplyText = 480

// appendReply writes a reply with its enhanced status code on each line (RFC 2034, 4).
func appendReply(out []byte, r *mta.Reply) []byte {
	for more, first, rest := true, true, r.Text; more; first = false {
		var line string
		line, rest, more = strings.Cut(rest, "\n")
		out = strconv.AppendInt(out, int64(r.Code), 10)
		if more {
			out = append(out, '-')
		} else {
			out = append(out, ' ')
		}
		if r.Enhanced != "" && (first || mta.ParseReply(r.Code, line).Enhanced == "") { // a primary's lines may differ
			out = append(out, r.Enhanced...)
			out = append(out, ' ')
		}
		out = append(out, replyText(line)...)
		out = append(out, '\r', '\n')
	}
	return out
}

// replyText makes sure that a text is one line: it may come from a list, a filter or the client itself.
func replyText(s string) string {
	s = s[:min(len(s), maxReplyText)]
	if isPrintableASCII(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// withContact adds to a refusal where its sender's postmaster can ask.
func withContact(r *mta.Reply, contact string) *mta.Reply {
	if contact == "" || r.Code < 400 {
		return r
	}
	c := *r
	c.Text = fmt.Sprintf("%s (help: %s)", r.Text, contact)
	return &c
}

// keywords are what EHLO can offer and a listener can hide.
var keywords = []string{
	"PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "CHUNKING", "DSN", "ENHANCEDSTATUSCODES", "STARTTLS", "ETRN", "LIMITS", "REQUIRETLS",
}

// appendEHLO writes the reply to EHLO: our name, then what we offer.
func appendEHLO(out []byte, hostname string, offered []string) []byte {
	out = append(out, "250-"...)
	last := len(out) - 1
	out = append(append(out, hostname...), crlf...)
	for _, line := range offered {
		out = append(out, "250-"...)
		last = len(out) - 1
		out = append(append(out, line...), crlf...)
	}
	out[last] = ' '
	return out
}

var sayHello = mta.NewReply(503, "5.5.1", "say EHLO first")

// sequenceFault says in our words what go-smtp answers 502 to: a command that came too early (RFC 5321, 4.3.2 wants 503).
func sequenceFault(verb, text string) *mta.Reply {
	switch {
	case strings.Contains(text, "introduce yourself"):
		return sayHello
	case verb == verbRCPT:
		return mta.NewReply(503, "5.5.1", "MAIL must come before RCPT")
	default:
		return mta.NewReply(503, "5.5.1", "no recipient has been accepted")
	}
}

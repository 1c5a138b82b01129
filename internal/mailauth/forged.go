package mailauth

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"understudy/internal/header"
	"understudy/internal/mta"
)

// Forged finds the fields that a sender may not write: Authentication-Results, those of ARC too, in the name of one of
// own (hosts and domains of ours and of the primary, with all below them; RFC 8601, 5), the marks of spam filters, and
// ours. Received-SPF stays: it has no name to tell by, and below our Received nobody takes it for ours. It also finds
// lines before the first field that would go on a field of ours put above them. What it finds is for mta.Edit.
//
// A *mta.Reply in the error refuses a header too large to be read to its end.
func Forged(own []string, c mta.Content) ([]mta.Span, error) {
	ids := make([]string, 0, len(own))
	for _, o := range own {
		if id := identity(o); id != "" {
			ids = append(ids, id)
		}
	}
	var spans []mta.Span
	h, err := header.Read(c, func(f *header.Field) error {
		if !forged(ids, f) {
			return nil
		}
		if n := len(spans); n > 0 && spans[n-1].End == f.Span.Start {
			spans[n-1].End = f.Span.End
			return nil
		}
		spans = append(spans, f.Span)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("mailauth: %w", err)
	}
	if h.Over {
		return nil, fmt.Errorf("mailauth: %w", mta.NewReply(552, "5.3.4", "the header is larger than %d octets or %d fields", header.MaxOctets, header.MaxFields))
	}
	return spans, nil
}

// marks are the beginnings of names that filters give to their marks.
var marks = []string{"x-spam", "x-rspamd", "x-understudy"}

func forged(own []string, f *header.Field) bool {
	if f.Name == "" {
		return f.Span.Start == 0 && len(f.Value) > 0 && (f.Value[0] == ' ' || f.Value[0] == '\t')
	}
	switch {
	case f.Is("Authentication-Results"):
		id, ok := authServID(f.Text())
		return !ok || claims(own, id)
	case f.Is("ARC-Authentication-Results"): // SpamAssassin reads it like the other; we never write one
		_, rest, _ := strings.Cut(f.Text(), ";")
		id, _ := authServID(rest)
		return claims(own, id)
	}
	for _, m := range marks {
		if len(f.Name) >= len(m) && strings.EqualFold(f.Name[:len(m)], m) {
			return true
		}
	}
	return false
}

// claims reports an authserv-id that is one of own or below it.
func claims(own []string, id string) bool {
	for _, o := range own {
		if within(id, o) {
			return true
		}
	}
	return false
}

// identity is the form in which authserv-ids are compared.
func identity(s string) string {
	if d, err := mta.Domain(s); err == nil {
		return d
	}
	return strings.ToLower(strings.TrimRight(s, "."))
}

// authServID reads who wrote an Authentication-Results field (RFC 8601, 2.2): a token or a quoted string after blanks
// and comments. ok is false where there is none; some reader may still see one.
func authServID(s string) (id string, ok bool) {
	s, ok = skipComments(s)
	if !ok || s == "" {
		return "", false
	}
	if s[0] == '"' {
		end := quoteEnd(s, 0)
		if end < 0 {
			return "", false
		}
		id = strings.TrimSpace(unquote(s[1:end]))
	} else {
		n := strings.IndexFunc(s, endsToken)
		if n < 0 {
			n = len(s)
		}
		id = s[:n]
		if rest, _ := skipComments(s[n:]); strings.HasPrefix(rest, "=") { // "spf=pass …" names nobody
			return "", false
		}
	}
	return identity(id), id != ""
}

// endsToken reports what is no part of a token (RFC 2045, 5.1), or is taken for a blank by some reader. Text beyond ASCII
// is part of one: it may be our name.
func endsToken(r rune) bool {
	return r <= ' ' || r == 0x7f || r == utf8.RuneError || unicode.IsSpace(r) || strings.ContainsRune(`;()<>@,:\"/[]?=`, r)
}

// skipComments goes over blanks and comments.
func skipComments(s string) (string, bool) {
	for {
		s = strings.TrimLeftFunc(s, func(r rune) bool { return r <= ' ' || unicode.IsSpace(r) })
		if !strings.HasPrefix(s, "(") {
			return s, true
		}
		end := commentEnd(s, 0)
		if end < 0 {
			return "", false
		}
		s = s[end+1:]
	}
}

// unquote undoes quoted pairs.
func unquote(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

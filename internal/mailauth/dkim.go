package mailauth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/emersion/go-msgauth/dkim"

	"understudy/internal/header"
	"understudy/internal/mta"
)

const (
	// maxSignatures is how many are kept; Config.Signatures says how many are verified.
	maxSignatures = 50
	// maxWork bounds the octets that the library reads: it goes through the whole header for each name that was signed.
	maxWork = 64 << 20
)

// signature is what we read of a DKIM-Signature field ourselves: the library tells neither the selector nor why it
// refuses a length.
type signature struct {
	domain, selector string
	length           bool // it has l=
	names            int  // how many it says to have signed
	cut              bool // it is longer than what is kept of a field
}

func readSignature(f *header.Field) signature {
	s := signature{cut: f.Cut}
	for tag := range strings.SplitSeq(string(f.Value), ";") {
		name, value, _ := strings.Cut(tag, "=")
		value = strings.Join(strings.Fields(value), "")
		switch strings.TrimSpace(name) {
		case "d":
			s.domain = value
		case "s":
			s.selector = value
		case "l":
			s.length = true
		case "h":
			s.names = strings.Count(value, ":") + 1
		}
	}
	return s
}

// dkim verifies the signatures, from a copy of its own and within half of the time, so that the DMARC policy can be
// asked for in any case.
func (v *Verifier) dkim(ctx context.Context, c mta.Content, h header.Header, s *survey) ([]mta.AuthResult, error) {
	sigs := s.signatures[:min(len(s.signatures), v.cfg.Signatures)]
	if len(sigs) == 0 {
		return nil, nil
	}
	if tooMuch(sigs, h) {
		return allOf(sigs, "neutral", "the header is too large to verify"), nil
	}
	r, err := c.Open()
	if err != nil {
		return nil, fmt.Errorf("dkim: open: %w", err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(ctx, v.cfg.ContentTimeout/2)
	defer cancel()
	in := &copyReader{ctx: ctx, r: r}
	if !h.Ended { // header-only mail is valid, but the library wants the empty line
		in.r = io.MultiReader(r, strings.NewReader("\r\n\r\n"))
	}
	verifications, err := dkim.VerifyWithOptions(in, &dkim.VerifyOptions{
		LookupTXT: func(name string) ([]string, error) {
			txts, err := v.resolver.LookupTXT(ctx, name)
			return txts, bare(err, name)
		},
		MaxVerifications: v.cfg.Signatures,
	})
	switch {
	case in.err != nil:
		return nil, fmt.Errorf("dkim: read: %w", in.err)
	case in.late:
		return allOf(sigs, "temperror", "not verified in time"), nil
	case err != nil && !errors.Is(err, dkim.ErrTooManySignatures):
		return allOf(sigs, "neutral", err.Error()), nil
	}
	return results(sigs, verifications), nil
}

// tooMuch reports what would cost far more than any honest signature.
func tooMuch(sigs []signature, h header.Header) bool {
	names := 0
	for _, sig := range sigs {
		if sig.cut {
			return true
		}
		names += sig.names
	}
	return h.Over || int64(names)*(h.Octets+64*int64(h.Fields)) > maxWork
}

// copyReader ends a content early rather than with an error, which the library does not survive, and remembers why.
type copyReader struct {
	ctx  context.Context
	r    io.Reader
	err  error // the reader's
	late bool  // time was up
}

func (c *copyReader) Read(p []byte) (int, error) {
	c.late = c.late || c.ctx.Err() != nil
	if c.late || c.err != nil {
		return 0, io.EOF
	}
	n, err := c.r.Read(p)
	if err != nil && err != io.EOF {
		c.err, err = err, io.EOF
	}
	return n, err
}

// allOf gives all signatures one result.
func allOf(sigs []signature, result, reason string) []mta.AuthResult {
	list := make([]mta.AuthResult, len(sigs))
	for i, s := range sigs {
		list[i] = mta.AuthResult{Result: result, Domain: domainOf(s.domain), Selector: s.selector, Reason: reason}
	}
	return list
}

// results puts the library's word beside what we read. Both go through the fields in order.
func results(sigs []signature, verifications []*dkim.Verification) []mta.AuthResult {
	list := make([]mta.AuthResult, len(verifications))
	for i, v := range verifications {
		list[i] = mta.AuthResult{Result: resultOf(v.Err), Domain: domainOf(v.Domain)}
		if v.Err != nil {
			list[i].Reason = reason(strings.TrimPrefix(v.Err.Error(), "dkim: "))
		}
		if len(sigs) != len(verifications) {
			continue
		}
		list[i].Selector = sigs[i].selector
		if list[i].Result == "fail" && sigs[i].length { // RFC 8601, 2.7.1: a signature that we do not take
			list[i].Result = "policy"
		}
	}
	return list
}

// resultOf is the library's word in those of RFC 8601, 2.7.1.
func resultOf(err error) string {
	switch {
	case err == nil:
		return "pass"
	case dkim.IsTempFail(err):
		return "temperror"
	case dkim.IsPermFail(err):
		return "permerror"
	}
	return "fail"
}

// reason is an error's text without what it tells of our resolver.
func reason(text string) string {
	text, _, _ = strings.Cut(text, ": lookup ")
	if strings.HasPrefix(text, "lookup ") {
		return "the DNS gave no answer"
	}
	return text
}

func domainOf(s string) string {
	d, err := mta.Domain(s)
	if err != nil {
		return ""
	}
	return d
}

// dkimFindings: a broken signature is no worse than none (RFC 6376, 6.1), but a message with nothing but broken ones was
// changed on its way, or made to look signed.
func dkimFindings(list []mta.AuthResult) []mta.Finding {
	why := ""
	for _, r := range list {
		switch r.Result {
		case "pass", "temperror", "neutral":
			return nil
		}
		if why == "" {
			why = r.Reason
		}
	}
	if len(list) == 0 {
		return nil
	}
	return []mta.Finding{{Name: "dkim:fail", Text: "DKIM: no signature is valid: " + clean(why), Weight: 0.5, Status: "7.20"}}
}

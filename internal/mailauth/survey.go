package mailauth

import (
	"fmt"
	"slices"
	"strings"

	"understudy/internal/header"
	"understudy/internal/mta"
)

// maxLine is what a line may have without its line end (RFC 5322, 2.1.1).
const maxLine = 998

// maxAuthors is how many domains of From fields are held against DMARC.
const maxAuthors = 4

// single are the fields that may stand once (RFC 5322, 3.6; RFC 2045, 3).
var single = [...]string{
	"From", "Sender", "Reply-To", "To", "Cc", "Bcc", "Date", "Subject", "Message-ID", "In-Reply-To", "References",
	"MIME-Version", "Content-Type", "Content-Transfer-Encoding",
}

// survey is what one pass over a header keeps of it.
type survey struct {
	seen       [len(single)]int // by the order of single
	from       int              // addresses in From fields
	authors    []string         // their domains, each once
	crowd      bool             // there are more domains than are kept
	signatures []signature
	unread     string // a From field that is no list of addresses
	overlong   string // the name of a field with an overlong line
	nul        bool
	odd        bool // there are lines that are no field
}

func (s *survey) visit(f *header.Field) error {
	if f.Longest > maxLine && s.overlong == "" {
		s.overlong = clean(f.Name)
	}
	s.nul = s.nul || f.NUL
	s.odd = s.odd || f.Name == ""
	for i, name := range single {
		if f.Is(name) {
			s.seen[i]++
		}
	}
	switch {
	case f.Is("From"):
		s.author(f)
	case f.Is("DKIM-Signature"):
		if len(s.signatures) < maxSignatures {
			s.signatures = append(s.signatures, readSignature(f))
		}
	}
	return nil
}

// author takes the domains of a From field.
func (s *survey) author(f *header.Field) {
	boxes, ok := mailboxes(f.Text())
	if !ok || f.Cut {
		s.unread = "the From field can't be read"
	}
	s.from += len(boxes)
	for _, d := range boxes {
		if d == "" || slices.Contains(s.authors, d) {
			continue
		}
		if len(s.authors) == maxAuthors {
			s.crowd = true
			continue
		}
		s.authors = append(s.authors, d)
	}
}

// findings tell what no proper mail program writes. Real mail is dirty: a fault alone asks for nothing, unless it is
// one by which two readers see two different messages.
func (s *survey) findings(h header.Header) []mta.Finding {
	var f []mta.Finding
	add := func(name string, weight float64, action mta.Action, format string, args ...any) {
		f = append(f, mta.Finding{Name: "header:" + name, Text: fmt.Sprintf(format, args...), Weight: weight, Action: action, Status: "6.0"})
	}
	if h.Over {
		add("too-large", 10, mta.Reject, "the header is larger than %d octets or %d fields", header.MaxOctets, header.MaxFields)
	}
	if s.seen[0] > 1 {
		add("many-from", 5, mta.Accept, "there are %d From fields", s.seen[0])
	}
	switch {
	case s.seen[0] == 0 && !h.Over:
		add("no-from", 3, mta.Accept, "the From field is missing")
	case s.crowd:
		add("from", 8, mta.Reject, "the From field names more than %d domains", maxAuthors)
	case s.unread != "":
		add("from", 2, mta.Accept, "%s", s.unread)
	case s.seen[0] == 1 && s.from != 1:
		add("from", 1, mta.Accept, "the From field has %d addresses", s.from)
	}
	if s.seen[6] == 0 && !h.Over {
		add("no-date", 1, mta.Accept, "the Date field is missing")
	}
	if twice := s.twice(); len(twice) > 0 {
		add("duplicate", 1.5, mta.Accept, "more than once: %s", strings.Join(twice, ", "))
	}
	if s.overlong != "" {
		add("overlong", 0.5, mta.Accept, "a line of %s is longer than %d octets", s.overlong, maxLine)
	}
	if s.nul {
		add("nul", 2, mta.Accept, "the header holds a NUL")
	}
	if s.odd {
		add("odd-line", 1, mta.Accept, "the header has a line that is no field")
	}
	return f
}

// twice names the fields that stand more often than they may; From is told of by itself.
func (s *survey) twice() []string {
	var names []string
	for i, n := range s.seen[1:] {
		if n > 1 {
			names = append(names, single[i+1])
		}
	}
	return names
}

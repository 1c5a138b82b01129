package smtpc

import (
	"strconv"
	"strings"
)

// Caps is what the primary's last EHLO offered. The zero value is a primary that only knows HELO.
type Caps struct {
	ESMTP               bool   // EHLO was understood
	Name                string // what the primary calls itself
	Pipelining          bool   // RFC 2920
	Chunking            bool   // RFC 3030
	EightBitMIME        bool   // RFC 6152
	SMTPUTF8            bool   // RFC 6531
	DSN                 bool   // RFC 3461
	StartTLS            bool   // RFC 3207
	RequireTLS          bool   // RFC 8689
	EnhancedStatusCodes bool   // RFC 2034
	Size                bool   // RFC 1870
	SizeLimit           int64  // octets; 0 is no stated limit
	XCLIENT             []string
	Lines               []string // each line of the reply but the first, as it came
}

// parseCaps reads the text of an EHLO reply.
func parseCaps(text string) Caps {
	lines := strings.Split(text, "\n")
	name, _, _ := strings.Cut(lines[0], " ")
	c := Caps{ESMTP: true, Name: name, Lines: lines[1:]}
	for _, l := range c.Lines {
		// Some old servers write "AUTH=LOGIN"; only the keyword matters to us.
		f := strings.Fields(l)
		if len(f) > 0 {
			c.set(strings.ToUpper(f[0]), f[1:])
		}
	}
	return c
}

func (c *Caps) set(keyword string, args []string) {
	switch keyword {
	case "PIPELINING":
		c.Pipelining = true
	case "CHUNKING":
		c.Chunking = true
	case "8BITMIME":
		c.EightBitMIME = true
	case "SMTPUTF8":
		c.SMTPUTF8 = true
	case "DSN":
		c.DSN = true
	case "STARTTLS":
		c.StartTLS = true
	case "REQUIRETLS":
		c.RequireTLS = true
	case "ENHANCEDSTATUSCODES":
		c.EnhancedStatusCodes = true
	case "XCLIENT":
		for _, a := range args {
			c.XCLIENT = append(c.XCLIENT, strings.ToUpper(a))
		}
	case "SIZE":
		c.Size = true
		if len(args) > 0 {
			if n, err := strconv.ParseInt(args[0], 10, 64); err == nil && n > 0 {
				c.SizeLimit = n
			}
		}
	}
}

package testkit

import "fmt"

// Smuggled is a sequence of octets that some servers took for the end of DATA and others did not, so that what
// follows it was one message here and two there. Only CR LF . CR LF is the end (RFC 5321, 4.1.1.4).
type Smuggled struct {
	Name string // "LF.CRLF"
	End  string
}

// Smuggling lists each false end made of two newlines and a dot, and those with NULs and blanks that were used.
func Smuggling() []Smuggled {
	newlines := []struct{ name, octets string }{
		{"LF", "\n"}, {"CR", "\r"}, {"CRLF", "\r\n"}, {"CRCRLF", "\r\r\n"}, {"LFCR", "\n\r"}, {"CRLFLF", "\r\n\n"},
	}
	var all []Smuggled
	for _, before := range newlines {
		for _, after := range newlines {
			end := before.octets + "." + after.octets
			if isEnd(before.octets, after.octets) {
				continue
			}
			all = append(all, Smuggled{before.name + "." + after.name, end})
		}
	}
	return append(all, []Smuggled{
		{"CRLF NUL .CRLF", "\r\n\x00.\r\n"}, {"CRLF. NUL CRLF", "\r\n.\x00\r\n"}, {"CRLF.CR NUL LF", "\r\n.\r\x00\n"},
		{"CR NUL LF.CRLF", "\r\x00\n.\r\n"}, {"CRLF. blank CRLF", "\r\n. \r\n"}, {"CRLF blank .CRLF", "\r\n .\r\n"},
		{"CRLF..CRLF", "\r\n..\r\n"}, {"CRLF.VT CRLF", "\r\n.\x0b\r\n"}, {"CRLF.NEL", "\r\n.\u0085"}, {"LS.LS", "\u2028.\u2028"},
	}...)
}

// isEnd tells whether the newlines around a dot make a true end of DATA, as CR CR LF . CR LF does.
func isEnd(before, after string) bool {
	return (before == "\r\n" || before == "\r\r\n") && (after == "\r\n" || after == "\r\n\n")
}

// Octets are what a client sends after DATA was answered 354: one message from its header to its true end. A server
// that sees another end in it sees a second message from smuggled@example.net to rcpt.
func (s Smuggled) Octets(rcpt string) string {
	return fmt.Sprintf("Subject: outer\r\n\r\nouter%s"+
		"MAIL FROM:<smuggled@example.net>\r\nRCPT TO:<%s>\r\nDATA\r\nSubject: inner\r\n\r\ninner\r\n.\r\n", s.End, rcpt)
}

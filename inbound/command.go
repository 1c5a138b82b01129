package inbound

import (
	"strings"

	"understudy/internal/mta"
)

// command is one line from the client.
type command struct {
	verb string // upper case
	arg  string // without blanks around it
}

// verbs that we know; any other is answered 500 by the wire.
const (
	verbHELO     = "HELO"
	verbEHLO     = "EHLO"
	verbMAIL     = "MAIL"
	verbRCPT     = "RCPT"
	verbDATA     = "DATA"
	verbBDAT     = "BDAT"
	verbRSET     = "RSET"
	verbNOOP     = "NOOP"
	verbVRFY     = "VRFY"
	verbQUIT     = "QUIT"
	verbHELP     = "HELP"
	verbEXPN     = "EXPN"
	verbAUTH     = "AUTH"
	verbSTARTTLS = "STARTTLS"
	verbETRN     = "ETRN"
)

// parseCommand splits a line without its newline. A control character has no place in a command: it is refused, for
// what one host takes for a blank ends the line at another.
func parseCommand(line []byte) (command, *mta.Reply) {
	for _, c := range line {
		if c < ' ' && c != '\t' || c == 0x7f {
			return command{}, mta.NewReply(500, "5.5.2", "control characters do not belong in a command")
		}
	}
	verb, arg, _ := strings.Cut(strings.ReplaceAll(string(line), "\t", " "), " ")
	return command{verb: strings.ToUpper(verb), arg: strings.Trim(arg, " ")}, nil
}

// isChunk tells whether a line that can't be read was meant to be followed by a chunk.
func isChunk(line []byte) bool {
	return len(line) >= len(verbBDAT) && strings.EqualFold(string(line[:len(verbBDAT)]), verbBDAT)
}

// otherProtocols begin the lines of clients that took us for a server of another kind, or that another server's
// client was tricked into sending (a browser made to POST mail to port 25).
var otherProtocols = []string{
	"GET ", "POST ", "HEAD ", "PUT ", "PATCH ", "DELETE ", "OPTIONS ", "TRACE ", "CONNECT ", "PRI * HTTP",
	"HTTP/", "HOST:", "USER-AGENT:", "CONTENT-", "ACCEPT:", "REFERER:", "COOKIE:",
	"SSH-", "PROXY ", "REGISTER SIP:", "INVITE SIP:", "OPTIONS SIP:", "SSTP_DUPLEX_POST ", "RTSP/",
	"\x16\x03",             // a TLS handshake
	"\x03\x00",             // RDP
	"\x04\x01", "\x05\x01", // SOCKS
}

// otherProtocol tells whether a line or the first octets of one are not SMTP.
func otherProtocol(line []byte) bool {
	for _, p := range otherProtocols {
		if len(line) >= len(p) && upper(line[0]) == p[0] && strings.EqualFold(string(line[:len(p)]), p) {
			return true
		}
	}
	return false
}

func upper(c byte) byte {
	if c >= 'a' && c <= 'z' {
		return c - 'a' + 'A'
	}
	return c
}

// splitPath cuts the argument of MAIL or RCPT into the path as the client wrote it and the parameters after it.
// Quotes are obeyed, so that a blank or ">" in a quoted local part ends nothing.
func splitPath(arg, keyword string) (path, params string, ok bool) {
	if len(arg) < len(keyword) || !strings.EqualFold(arg[:len(keyword)], keyword) {
		return "", "", false
	}
	arg = strings.TrimLeft(arg[len(keyword):], " ")
	end := pathEnd(arg)
	if end <= 0 {
		return "", "", false
	}
	path, params = arg[:end], arg[end:]
	if params != "" && params[0] != ' ' {
		return "", "", false
	}
	return path, strings.Trim(params, " "), true
}

// pathEnd is the length of the path that s begins with, or -1. Paths without brackets are common from devices.
func pathEnd(s string) int {
	bracket, quoted := strings.HasPrefix(s, "<"), false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case bracket && c == '>':
			return i + 1
		case !bracket && c == ' ':
			return i
		}
	}
	if bracket || quoted {
		return -1
	}
	return len(s)
}

package testkit

// Step names a point of a session at which a Primary can be told what to do.
type Step string

const (
	AtBanner   Step = "banner"
	AtEHLO     Step = "ehlo" // HELO and LHLO too
	AtSTARTTLS Step = "starttls"
	AtXCLIENT  Step = "xclient"
	AtRSET     Step = "rset"
	AtMAIL     Step = "mail"
	AtRCPT     Step = "rcpt"
	AtDATA     Step = "data"  // the reply to DATA
	AtBody     Step = "body"  // in the middle of the content; only what breaks the session makes sense
	AtFinal    Step = "final" // the content has been read; in LMTP once a recipient
	AtQUIT     Step = "quit"
)

// Point is where a session stands when the script is asked.
type Point struct {
	Step    Step
	Conn    int    // sessions since the first Start, from 1
	Message int    // MAIL commands of this session, from 1; 0 before the first
	Rcpt    int    // place of the recipient, from 0, at AtRCPT and in LMTP at AtFinal
	From    string // the reverse-path of the transaction, from MAIL on
	Arg     string // the path of MAIL and RCPT, the name of EHLO, the attributes of XCLIENT
}

// Action is what a Primary does instead of its usual reply. The zero Action is the usual reply.
type Action struct {
	Say   string // lines to send, as they are: "451 4.7.1 later\r\n", garbage, half a reply
	Then  Then
	Delay bool // wait for Primary.Proceed before anything else
}

// Then is what follows the words.
type Then uint8

const (
	GoOn  Then = iota // the session goes on
	Close             // FIN
	Reset             // RST, so that the client sees a reset connection
	Stall             // nothing more is said or read until the primary stops
)

// Say answers with one line and goes on.
func Say(line string) Action { return Action{Say: line + "\r\n"} }

// Bye answers with one line and closes.
func Bye(line string) Action { return Action{Say: line + "\r\n", Then: Close} }

// The ways in which a primary breaks.
var (
	ResetNow = Action{Then: Reset}
	CloseNow = Action{Then: Close}
	StallNow = Action{Then: Stall}
	Garbage  = Action{Say: "\x00\x01 what?\r\n"}
	Half     = Action{Say: "25", Then: Close}
)

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"understudy/internal/admin"
	"understudy/internal/mta"
)

func (a *app) parityCmd() *cobra.Command {
	var domain string
	var days int
	cmd := &cobra.Command{
		Use:   "parity",
		Short: "Show how far our own verdicts agree with the primary's",
		Long: "Show how far our own verdicts agree with the primary's.\n\n" +
			"Wherever both are known for the same mail they are held against each other: while the primary is up our verdict\n" +
			"is made beside its (shadow); of mail that waited here our verdict when it came (receipt) and before it was handed\n" +
			"over (hindsight). The bypass rate is the share of what we take that the primary refuses for its content, the\n" +
			"over-block rate the share of what we refuse or hold that it takes, each with its 95 % interval.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if days < 0 {
				return fmt.Errorf("--days %d: want a number above 0", days)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			report, err := c.Parity(cmd.Context(), domain, days)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(report)
			}
			return a.printParity(report)
		},
	}
	cmd.Flags().StringVarP(&domain, "domain", "d", "", "only of this `DOMAIN`")
	cmd.Flags().IntVar(&days, "days", 0, "of the last `N` days (default: a week)")
	return cmd
}

func (a *app) printParity(r admin.ParityReport) error {
	if len(r.Domains) == 0 {
		_, err := fmt.Fprintf(a.out, "nothing was compared from %s to %s\n", r.From, r.To)
		return err
	}
	for i, d := range r.Domains {
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		fmt.Fprintf(a.out, "%s, %s to %s\n", d.Domain, r.From, r.To)
		for _, k := range d.Kinds {
			if err := a.printKind(k); err != nil {
				return err
			}
		}
	}
	return nil
}

var kindTexts = map[mta.PairKind]string{
	mta.PairShadow:    "beside the primary while it was up",
	mta.PairReceipt:   "when it came while the primary was away",
	mta.PairHindsight: "before it was handed over",
}

func (a *app) printKind(k admin.ParityKind) error {
	fmt.Fprintf(a.out, "\n%s: our verdict %s, %d messages\n", k.Kind, kindTexts[k.Kind], k.Messages)
	rows := [][]any{{"  OURS", "ACCEPTED", "REFUSED", "NO RECIPIENT", "DEFERRED"}}
	for action, row := range k.Matrix {
		rows = append(rows, []any{"  " + mta.Action(action).String(), row[mta.Taken], row[mta.RefusedContent], row[mta.RefusedRcpt], row[mta.PutOff]})
	}
	if err := a.table(rows); err != nil {
		return err
	}
	fmt.Fprintln(a.out, "  bypass rate:    ", rate(k.Bypass))
	fmt.Fprintln(a.out, "  over-block rate:", rate(k.OverBlock))
	if err := a.printReasons("the primary refused what we took", k.TheyRefuse); err != nil {
		return err
	}
	return a.printReasons("we refused or held what the primary took", k.WeRefuse)
}

// rate writes a share with its interval.
func rate(r admin.ParityRate) string {
	if r.Of == 0 {
		return "nothing to compare"
	}
	return fmt.Sprintf("%.2f %% (%.2f to %.2f %%), %d of %d", 100*r.Rate, 100*r.Low, 100*r.High, r.N, r.Of)
}

// shownIDs of a reason fit beside it; --json gives more.
const shownIDs = 3

func (a *app) printReasons(title string, reasons []admin.ParityReason) error {
	if len(reasons) == 0 {
		return nil
	}
	fmt.Fprintf(a.out, "  %s:\n", title)
	var rows [][]any
	for _, r := range reasons {
		row := []any{fmt.Sprintf("    %d", r.Count), r.Text}
		if ids := r.IDs[max(0, len(r.IDs)-shownIDs):]; len(ids) > 0 {
			row = append(row, strings.Join(ids, " "))
		}
		rows = append(rows, row)
	}
	return a.table(rows)
}

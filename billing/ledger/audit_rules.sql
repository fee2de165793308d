-- The rules of the ledger, which billing/ledger/audit.py reads and checks.
--
-- A block begins with `-- rule: code | message` and holds one query that finds the rows breaking the
-- rule. `-- warning:` instead of `-- rule:` marks a problem that freezes no account.
--
-- A query returns `place` and `account_id` first; the other columns are the figures in the message.
-- It ends without a semicolon, since a LIMIT is appended. `[column]` is replaced by the condition
-- that selects the accounts to check, by their id in that column. `%(overdue)s` is the time before
-- which an active hold should have ended.

-- rule: balance_lots | The balance is {balance}, but its lots hold {lots}.
SELECT 'account ' || a.id AS place, a.id AS account_id, a.balance, coalesce(l.lots, 0) AS lots
FROM billing_account a LEFT JOIN (
  SELECT account_id, sum(remaining) AS lots FROM billing_creditlot
  WHERE [account_id] GROUP BY account_id
) l ON l.account_id = a.id
WHERE [a.id] AND a.balance <> coalesce(l.lots, 0)

-- rule: balance_entries | The balance is {balance}, but its ledger entries add up to {entries}.
SELECT 'account ' || a.id AS place, a.id AS account_id, a.balance,
  coalesce(e.entries, 0) AS entries
FROM billing_account a LEFT JOIN (
  SELECT account_id, sum(amount) AS entries FROM billing_ledgerentry
  WHERE [account_id] GROUP BY account_id
) e ON e.account_id = a.id
WHERE [a.id] AND a.balance <> coalesce(e.entries, 0)

-- rule: balance_last | The balance is {balance} at entry {seq}, but the last entry, {last_seq}, left {last}.
SELECT 'account ' || a.id AS place, a.id AS account_id, a.balance, a.seq,
  coalesce(e.balance_after, 0) AS last, coalesce(e.seq, 0) AS last_seq
FROM billing_account a LEFT JOIN LATERAL (
  SELECT balance_after, seq FROM billing_ledgerentry
  WHERE account_id = a.id ORDER BY seq DESC LIMIT 1
) e ON TRUE
WHERE [a.id]
  AND (a.balance <> coalesce(e.balance_after, 0) OR a.seq <> coalesce(e.seq, 0))

-- rule: held | {held} are held, but its active holds add up to {holds}.
SELECT 'account ' || a.id AS place, a.id AS account_id, a.held, coalesce(h.holds, 0) AS holds
FROM billing_account a LEFT JOIN (
  SELECT account_id, sum(amount) AS holds FROM billing_hold
  WHERE [account_id] AND status = 'active' GROUP BY account_id
) h ON h.account_id = a.id
WHERE [a.id] AND a.held <> coalesce(h.holds, 0)

-- rule: bounds | A balance of {balance}, {held} held and a debt of {debt} are out of bounds.
SELECT 'account ' || a.id AS place, a.id AS account_id, a.balance, a.held, a.debt
FROM billing_account a
WHERE [a.id] AND NOT (a.balance >= a.held AND a.held >= 0 AND a.debt >= 0)

-- rule: debt | The debt is {debt}, but its debt entries add up to {entries}.
SELECT 'account ' || a.id AS place, a.id AS account_id, a.debt, coalesce(d.entries, 0) AS entries
FROM billing_account a LEFT JOIN (
  SELECT account_id, sum(amount) AS entries FROM billing_debtentry
  WHERE [account_id] GROUP BY account_id
) d ON d.account_id = a.id
WHERE [a.id] AND a.debt <> coalesce(d.entries, 0)

-- rule: free_in_debt | {free} are free although {debt} are owed.
SELECT 'account ' || a.id AS place, a.id AS account_id, a.balance - a.held AS free, a.debt
FROM billing_account a WHERE [a.id] AND a.debt > 0 AND a.balance > a.held

-- rule: chain | Entry {seq} begins with {before}, after entry {previous}, which ended with {after}.
SELECT 'account ' || account_id AS place, account_id, seq, balance_before AS before,
  previous AS previous, after
FROM (
  SELECT account_id, seq, balance_before,
    coalesce(lag(seq) OVER w, 0) AS previous,
    coalesce(lag(balance_after) OVER w, 0) AS after
  FROM billing_ledgerentry WHERE [account_id]
  WINDOW w AS (PARTITION BY account_id ORDER BY seq)
) chain
WHERE seq <> previous + 1 OR balance_before <> after

-- rule: entry_adds_up | Entry {seq} goes from {before} to {after} by {amount}.
SELECT 'entry ' || id AS place, account_id, seq, balance_before AS before,
  balance_after AS after, amount
FROM billing_ledgerentry
WHERE [account_id] AND (balance_after <> balance_before + amount OR balance_after < 0)

-- rule: entry_without_lots | Entry {seq} of {amount} names no lot.
SELECT 'entry ' || e.id AS place, e.account_id, e.seq, e.amount
FROM billing_ledgerentry e
WHERE [e.account_id] AND NOT EXISTS (SELECT FROM billing_lotmove m WHERE m.entry_id = e.id)

-- rule: entry_moves | Entry {seq} is of {amount}, but moves {moved} of its lots.
SELECT 'entry ' || e.id AS place, e.account_id, e.seq, e.amount, sum(m.amount) AS moved
FROM billing_ledgerentry e JOIN billing_lotmove m ON m.entry_id = e.id
WHERE [e.account_id] GROUP BY e.id HAVING e.amount <> sum(m.amount)

-- rule: move_abroad | Entry {seq} moves a lot of account {owner}.
SELECT 'entry ' || e.id AS place, e.account_id, e.seq, l.account_id AS owner
FROM billing_lotmove m
JOIN billing_ledgerentry e ON e.id = m.entry_id
JOIN billing_creditlot l ON l.id = m.lot_id
WHERE [e.account_id] AND l.account_id <> e.account_id

-- rule: lot_moves | The lot holds {remaining} of {granted}, but {brought} came in and {left} should be left.
SELECT 'lot ' || l.id AS place, l.account_id, l.remaining, l.granted,
  coalesce(sum(m.amount) FILTER (WHERE m.amount > 0), 0) AS brought,
  coalesce(sum(m.amount), 0) AS left
FROM billing_creditlot l LEFT JOIN billing_lotmove m ON m.lot_id = l.id
WHERE [l.account_id]
GROUP BY l.id
HAVING l.remaining <> coalesce(sum(m.amount), 0)
  OR l.granted <> coalesce(sum(m.amount) FILTER (WHERE m.amount > 0), 0)

-- rule: lot_bounds | The lot holds {remaining} of {granted}.
SELECT 'lot ' || id AS place, account_id, remaining, granted FROM billing_creditlot
WHERE [account_id] AND NOT (granted > 0 AND remaining >= 0 AND remaining <= granted)

-- rule: hold_entry | The hold is {status} for {settled}, but {count} usage entries charged {charged}.
SELECT 'hold ' || h.id AS place, h.account_id, h.status, coalesce(h.settled, 0) AS settled,
  count(e.id) AS count, coalesce(-sum(e.amount), 0) AS charged
FROM billing_hold h LEFT JOIN billing_ledgerentry e ON e.hold_id = h.id
WHERE [h.account_id]
GROUP BY h.id
HAVING count(e.id) <> (CASE WHEN h.status = 'settled' THEN 1 ELSE 0 END)
  OR coalesce(-sum(e.amount), 0) <> coalesce(h.settled, 0)
  OR bool_or(e.account_id <> h.account_id OR e.kind <> 'usage')

-- rule: usage_without_hold | Entry {seq} charges {amount} for usage without a hold.
SELECT 'entry ' || id AS place, account_id, seq, -amount AS amount
FROM billing_ledgerentry WHERE [account_id] AND kind = 'usage' AND hold_id IS NULL

-- rule: hold_usage | The hold was settled for {settled} and short by {shortfall}, but its usage records say {charged} and {short}.
SELECT 'hold ' || h.id AS place, h.account_id, coalesce(h.settled, 0) AS settled, h.shortfall,
  sum(u.charged) AS charged, sum(u.shortfall) AS short
FROM billing_hold h JOIN billing_usagerecord u ON u.hold_id = h.id
WHERE [h.account_id]
GROUP BY h.id
HAVING sum(u.charged) <> coalesce(h.settled, 0) OR sum(u.shortfall) <> h.shortfall

-- rule: hold_without_usage | The hold was settled for {settled}, but no usage record says what for.
SELECT 'hold ' || h.id AS place, h.account_id, h.settled FROM billing_hold h
WHERE [h.account_id] AND h.status = 'settled'
  AND NOT EXISTS (SELECT FROM billing_usagerecord u WHERE u.hold_id = h.id)

-- rule: usage_adds_up | Usage of {cost} was charged {charged}, short by {shortfall} and absorbed {absorbed}.
SELECT 'usage ' || u.id AS place, a.id AS account_id, u.cost, u.charged, u.shortfall, u.absorbed
FROM billing_usagerecord u JOIN billing_account a ON a.user_id = u.user_id
WHERE [a.id] AND u.cost <> u.charged + u.shortfall + u.absorbed

-- rule: usage_unpaid | Usage of attempt {attempt}, which was {finish}, charged {charged} and was short by {shortfall}.
SELECT 'usage ' || u.id AS place, a.id AS account_id, u.attempt, u.finish, u.charged, u.shortfall
FROM billing_usagerecord u JOIN billing_account a ON a.user_id = u.user_id
WHERE [a.id] AND u.finish IN ('crashed', 'empty') AND u.charged + u.shortfall > 0

-- warning: hold_overdue | The hold of {amount} is active, and was to end at {expires_at}.
SELECT 'hold ' || id AS place, account_id, amount, expires_at::text AS expires_at
FROM billing_hold WHERE [account_id] AND status = 'active' AND expires_at < %(overdue)s

-- rule: order_purchase | The order is {status} and of {credits}, but {count} purchases gave {given}.
SELECT 'order ' || o.id AS place, o.account_id, o.status, o.credits, count(e.id) AS count,
  coalesce(sum(e.amount), 0) AS given
FROM billing_order o
LEFT JOIN billing_ledgerentry e ON e.order_id = o.id AND e.kind = 'purchase'
WHERE [o.account_id]
GROUP BY o.id
HAVING CASE WHEN o.status IN ('paid', 'partially_refunded', 'refunded')
  THEN count(e.id) <> 1 OR sum(e.amount) <> o.credits
    OR bool_or(e.account_id <> o.account_id)
  ELSE count(e.id) > 0 END

-- rule: order_bonus | The order is {status} with a bonus of {bonus}, but {count} entries gave {given}.
SELECT 'order ' || o.id AS place, o.account_id, o.status, o.bonus, count(e.id) AS count,
  coalesce(sum(e.amount), 0) AS given
FROM billing_order o
LEFT JOIN billing_ledgerentry e ON e.order_id = o.id AND e.kind = 'bonus'
WHERE [o.account_id]
GROUP BY o.id
HAVING CASE WHEN o.status IN ('paid', 'partially_refunded', 'refunded') AND o.bonus > 0
  THEN count(e.id) <> 1 OR sum(e.amount) <> o.bonus OR bool_or(e.account_id <> o.account_id)
  ELSE count(e.id) > 0 END

-- rule: purchase_without_order | Entry {seq} of {amount} is a purchase without an order.
SELECT 'entry ' || id AS place, account_id, seq, amount FROM billing_ledgerentry
WHERE [account_id] AND kind = 'purchase' AND order_id IS NULL

-- rule: order_refunded | {refunded} of {amount_minor} {currency} (minor units) are refunded, but the refunds that succeeded add up to {sum}.
SELECT 'order ' || o.id AS place, o.account_id, o.amount_minor, o.currency,
  o.amount_refunded_minor AS refunded, coalesce(r.sum, 0) AS sum
FROM billing_order o LEFT JOIN (
  SELECT order_id, sum(amount_minor) AS sum
  FROM billing_refund WHERE status = 'succeeded' GROUP BY order_id
) r ON r.order_id = o.id
WHERE [o.account_id] AND o.amount_refunded_minor <> least(coalesce(r.sum, 0), o.amount_minor)

-- warning: order_money_back | {returned} of {amount_minor} {currency} (minor units) went back to the buyer, which is {part} credits, but {taken} were taken back. Sync the order with its provider.
SELECT 'order ' || o.id AS place, o.account_id, o.amount_minor, o.currency,
  m.money AS returned, p.part, m.taken
FROM (
  SELECT order_id, sum(amount_minor) AS money, sum(credits + debt) AS taken
  FROM (
    SELECT order_id, amount_minor, credits, debt FROM billing_refund WHERE status <> 'failed'
    UNION ALL
    SELECT order_id, amount_minor, credits, debt FROM billing_dispute
    WHERE funds_withdrawn AND NOT returned
  ) claim GROUP BY order_id
) m
JOIN billing_order o ON o.id = m.order_id
CROSS JOIN LATERAL (
  SELECT CASE WHEN m.money >= o.amount_minor THEN o.credits + o.bonus
    ELSE div((o.credits + o.bonus) * m.money, o.amount_minor) END AS part
) p
CROSS JOIN LATERAL (
  SELECT coalesce(-sum(v.amount), 0) AS sum FROM billing_creditlot l
  JOIN billing_lotmove v ON v.lot_id = l.id JOIN billing_ledgerentry e ON e.id = v.entry_id
  WHERE l.order_id = o.id AND e.kind = 'expire'
) expired
WHERE [o.account_id]
  -- Credits that expired unused are not taken back.
  AND NOT m.taken BETWEEN least(p.part, o.credits + o.bonus - expired.sum) AND p.part

-- warning: order_taken_back | {taken} were taken back of an order of {given}.
SELECT 'order ' || o.id AS place, o.account_id, -e.net AS taken, o.credits + o.bonus AS given
FROM billing_order o JOIN (
  SELECT order_id, sum(amount) AS net FROM billing_ledgerentry
  WHERE order_id IS NOT NULL
    AND kind IN ('refund', 'dispute', 'refund_reversal', 'dispute_won')
  GROUP BY order_id
) e ON e.order_id = o.id
WHERE [o.account_id] AND -e.net > o.credits + o.bonus

-- rule: refund | The refund is {status} with {credits} taken and a debt of {debt}, but its entries took {taken} in all.
SELECT 'refund ' || r.id AS place, o.account_id, r.status, r.credits, r.debt,
  coalesce(e.taken, 0) + coalesce(d.owed, 0) AS taken
FROM billing_refund r JOIN billing_order o ON o.id = r.order_id LEFT JOIN (
  SELECT refund_id, -sum(amount) AS taken, -sum(amount) FILTER (WHERE amount < 0) AS gross
  FROM billing_ledgerentry
  WHERE refund_id IS NOT NULL AND kind IN ('refund', 'refund_reversal') GROUP BY refund_id
) e ON e.refund_id = r.id LEFT JOIN (
  SELECT split_part(idempotency_key, ':', 2) AS refund_id, sum(amount) AS owed,
    sum(amount) FILTER (WHERE amount > 0) AS gross
  FROM billing_debtentry WHERE idempotency_key LIKE 'refund:%%' GROUP BY 1
) d ON d.refund_id = r.id::text
WHERE [o.account_id] AND (
  coalesce(e.taken, 0) + coalesce(d.owed, 0)
    <> CASE WHEN r.status = 'failed' THEN 0 ELSE r.credits + r.debt END
  OR coalesce(e.gross, 0) + coalesce(d.gross, 0) < r.credits + r.debt)

-- rule: dispute | The dispute is {status} with {credits} taken and a debt of {debt}, but its entries took {taken} in all.
SELECT 'dispute ' || d.id AS place, o.account_id, d.status, d.credits, d.debt,
  coalesce(e.taken, 0) + coalesce(w.owed, 0) AS taken
FROM billing_dispute d JOIN billing_order o ON o.id = d.order_id LEFT JOIN (
  SELECT dispute_id, -sum(amount) AS taken, -sum(amount) FILTER (WHERE amount < 0) AS gross
  FROM billing_ledgerentry
  WHERE dispute_id IS NOT NULL AND kind IN ('dispute', 'dispute_won') GROUP BY dispute_id
) e ON e.dispute_id = d.id LEFT JOIN (
  SELECT split_part(idempotency_key, ':', 2) AS dispute_id, sum(amount) AS owed,
    sum(amount) FILTER (WHERE amount > 0) AS gross
  FROM billing_debtentry WHERE idempotency_key LIKE 'dispute:%%' GROUP BY 1
) w ON w.dispute_id = d.id::text
WHERE [o.account_id] AND (
  coalesce(e.taken, 0) + coalesce(w.owed, 0)
    <> CASE WHEN d.returned THEN 0 ELSE d.credits + d.debt END
  OR coalesce(e.gross, 0) + coalesce(w.gross, 0) < d.credits + d.debt)

-- warning: promo_count | The code counts {redeemed} redemptions, but there are {count}.
SELECT 'promo code ' || c.code AS place, NULL::bigint AS account_id, c.redeemed,
  count(r.id) AS count
FROM billing_promocode c LEFT JOIN billing_promoredemption r ON r.code_id = c.id
GROUP BY c.id HAVING c.redeemed <> count(r.id)

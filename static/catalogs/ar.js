// Written by `make messages` from chatproject/locale/.
globalThis.catalog = { language: "ar", plural: (n) => Number((n == 0 ? 0 : n == 1 ? 1 : n == 2 ? 2 : n % 100 >= 3 && n % 100 <= 10 ? 3 : n % 100 >= 11 && n % 100 <= 99 ? 4 : 5)), messages: {
"<{amount}": "أقل من {amount}",
"A reply is still being written. Wait for it, or stop it first.": "ما زال الرد يُكتب. انتظره أو أوقفه أولًا.",
"Back to the text of footnote {label}": "العودة إلى نص الحاشية {label}",
"Copied": "نُسخ",
"Footnote {label}": "الحاشية {label}",
"Hide": "إخفاء",
"New chat": "محادثة جديدة",
"None chosen": "لم يُختر شيء",
"Preview": "معاينة",
"Queued behind your other replies": "في الانتظار خلف ردودك الأخرى",
"Queued behind your other replies, {count} message ahead": [
"في الانتظار خلف ردودك الأخرى",
"في الانتظار خلف ردودك الأخرى، قبلها رسالة واحدة",
"في الانتظار خلف ردودك الأخرى، قبلها رسالتان",
"في الانتظار خلف ردودك الأخرى، قبلها {count} رسائل",
"في الانتظار خلف ردودك الأخرى، قبلها {count} رسالة",
"في الانتظار خلف ردودك الأخرى، قبلها {count} رسالة"
],
"Queued, {place}": "في الانتظار، {place}",
"Reading your message…": "يقرأ رسالتك…",
"Reply failed. {reason}": "فشل الرد. {reason}",
"Reply finished": "اكتمل الرد",
"Reply interrupted. Resuming…": "انقطع الرد. يُستأنف الآن…",
"Reply stopped": "أُوقف الرد",
"Show": "إظهار",
"Show image from {host}": "عرض الصورة من {host}",
"Starting…": "يبدأ الآن…",
"The browser blocked copying. Select the text and copy it by hand.": "منع المتصفح النسخ. حدّد النص وانسخه يدويًا.",
"The message is {count} character too long. Shorten it or send it in parts.": [
"الرسالة ضمن الحد.",
"الرسالة أطول من الحد بحرف واحد. اختصرها أو أرسلها على أجزاء.",
"الرسالة أطول من الحد بحرفين. اختصرها أو أرسلها على أجزاء.",
"الرسالة أطول من الحد بـ {count} أحرف. اختصرها أو أرسلها على أجزاء.",
"الرسالة أطول من الحد بـ {count} حرفًا. اختصرها أو أرسلها على أجزاء.",
"الرسالة أطول من الحد بـ {count} حرف. اختصرها أو أرسلها على أجزاء."
],
"The model is busy: {place}": "النموذج مشغول: {place}",
"Try again": "حاول مجددًا",
"Try again in {count} min": "حاول مجددًا بعد {count} د",
"Try again in {count} s": "حاول مجددًا بعد {count} ث",
"You are offline. Your text is saved here. Send it when you are back online.": "أنت بلا اتصال. نصك محفوظ هنا. أرسله عندما يعود الاتصال.",
"about {count} min": "نحو {count} د",
"about {count} s": "نحو {count} ث",
"next in line": "التالي في الدور",
"{amount} credits available": "{amount} نقطة متاحة",
"{count} character left": [
"لم يبقَ أي حرف",
"بقي حرف واحد",
"بقي حرفان",
"بقيت {count} أحرف",
"بقي {count} حرفًا",
"بقي {count} حرف"
],
"{count} character over the limit": [
"لا أحرف فوق الحد",
"حرف واحد فوق الحد",
"حرفان فوق الحد",
"{count} أحرف فوق الحد",
"{count} حرفًا فوق الحد",
"{count} حرف فوق الحد"
],
"{count} chosen on this page": [
"لم يُختر شيء في هذه الصفحة",
"اختير واحد في هذه الصفحة",
"اختير اثنان في هذه الصفحة",
"اختيرت {count} في هذه الصفحة",
"اختير {count} في هذه الصفحة",
"اختير {count} في هذه الصفحة"
],
"{count} earlier message loaded": [
"لم تُحمّل رسائل أقدم",
"حُمّلت رسالة أقدم",
"حُمّلت رسالتان أقدم",
"حُمّلت {count} رسائل أقدم",
"حُمّلت {count} رسالة أقدم",
"حُمّلت {count} رسالة أقدم"
],
"{count} file": [
"لا ملفات",
"ملف واحد",
"ملفان",
"{count} ملفات",
"{count} ملفًا",
"{count} ملف"
],
"{n}nd": "{n}",
"{n}rd": "{n}",
"{n}st": "{n}",
"{n}th": "{n}",
"{ordinal} in line": "رقم {ordinal} في الدور",
"{place}, {time}": "{place}، {time}"
} };
